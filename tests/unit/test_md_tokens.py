"""Session tokens: for whom and how long they hold, and where their secret comes from."""

from __future__ import annotations

import stat
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import EcomputeError
from md_server.tokens import MOST_TTL_SECONDS, SECRET_NAME, TOKEN_CHARACTERS, Tokens, secret_in, ttl_of
from tests.fakes.clock import FakeClock

ONE, TWO = UUID(int=1), UUID(int=2)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tokens(clock: FakeClock) -> Tokens:
    return Tokens(b"s" * 32, clock)


def test_a_token_holds_for_its_guest_and_its_time(tokens, clock):
    token = tokens.issue(ONE, 60)
    assert (tokens.is_good(ONE, token), tokens.is_good(TWO, token)) == (True, False)
    clock.now += 59
    assert tokens.is_good(ONE, token)
    clock.now += 1
    assert not tokens.is_good(ONE, token)


def test_the_longest_one_holds_at_once(tokens):
    assert tokens.is_good(ONE, tokens.issue(ONE, MOST_TTL_SECONDS))


def test_one_of_a_clock_that_was_ahead_does_not_hold_for_years(tokens, clock):
    clock.now += 10 * 365 * 86400
    token = tokens.issue(ONE, 60)
    clock.now -= 10 * 365 * 86400
    assert not tokens.is_good(ONE, token)


def test_the_longest_outlives_a_small_step_back_of_the_clock(tokens, clock):
    token = tokens.issue(ONE, MOST_TTL_SECONDS)
    clock.now -= 2
    assert tokens.is_good(ONE, token)


def test_it_means_the_same_to_the_next_server_and_nothing_to_another_host(tokens, clock):
    token = tokens.issue(ONE, 60)
    assert Tokens(b"s" * 32, clock).is_good(ONE, token)
    assert not Tokens(b"t" * 32, clock).is_good(ONE, token)


def test_a_token_is_fit_for_a_header_and_no_longer_than_it_says(tokens):
    token = tokens.issue(ONE, 60)
    assert token.replace("-", "").replace("_", "").isalnum()
    assert len(token) <= TOKEN_CHARACTERS


def test_no_character_of_a_token_can_be_another(tokens):
    token = tokens.issue(ONE, 60)
    for at in range(len(token) - 1):  # of the last some bits are nobody's
        other = "A" if token[at] != "A" else "B"
        assert not tokens.is_good(ONE, token[:at] + other + token[at + 1 :])


@pytest.mark.parametrize(
    "token", ["", "A", "AAAA", "=", "====", "☃", "A" * 50, "A" * 52, "A" * 10_000, "ADua yjw", "\x00", "-", "\ud800"]
)
def test_what_is_none_is_none(tokens, token):
    assert not tokens.is_good(ONE, token)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1), ("60", 60), ("21600", 21600), ("007", 7), ("", None), ("0", None), ("21601", None), ("-1", None), ("+1", None),
        ("1.0", None), (" 1", None), ("1, 1", None), ("٣", None), ("1" * 5000, None), ("1_0", None),
    ],
)  # fmt: skip
def test_the_time_that_may_be_asked_for(text, seconds):
    assert ttl_of(text) == seconds


def test_the_secret_is_kept_and_nobody_else_s_to_read(tmp_path):
    secret = secret_in(tmp_path)
    assert len(secret) == 32
    assert secret_in(tmp_path) == secret
    assert stat.S_IMODE((tmp_path / SECRET_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_NAME]


@pytest.mark.parametrize(
    ("content", "mode"), [(b"", 0o600), (b"short", 0o600), (b"l" * 33, 0o600), (b"s" * 32, 0o640), (b"s" * 32, 0o644)]
)
def test_one_that_is_not_whole_or_was_readable_is_made_anew(tmp_path, content, mode):
    file = tmp_path / SECRET_NAME
    file.write_bytes(content)
    file.chmod(mode)
    secret = secret_in(tmp_path)
    assert (len(secret), secret != content) == (32, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_half_made_one_of_a_crash_is_in_nobody_s_way(tmp_path):
    (tmp_path / f"{SECRET_NAME}.partial").write_bytes(b"x")
    assert secret_in(tmp_path) == secret_in(tmp_path)


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"s" * 32)
    (tmp_path / SECRET_NAME).symlink_to("elsewhere")
    with pytest.raises(EcomputeError, match=SECRET_NAME):
        secret_in(tmp_path)


def test_a_folder_that_is_not_there_is_one_clear_line():
    with pytest.raises(EcomputeError, match=r"session tokens cannot be kept in /nowhere/md-server\.secret"):
        secret_in(Path("/nowhere"))
