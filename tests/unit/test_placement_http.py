"""What each kind of answer, or its absence, means; time limits, tokens and addresses. No server, no network."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from common.config import PlacementConfig
from common.errors import ConfigError, EcomputeError, PlacementUnavailable
from common.placement import Placement
from common.placement_http import MICROVERSION, PlacementHttp
from common.retry import Deadline

VERSION_HEADER = {"OpenStack-API-Version": f"placement {MICROVERSION}"}


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Session:
    """Gives the *answers* in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: requests.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def request(self, method: str, url: str, **given: Any) -> requests.Response:
        self.asked.append({"method": method, "url": url, **given})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(status: int, body: object = None, **headers: str) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response._content = b"" if body is None else json.dumps(body).encode()
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()} or VERSION_HEADER)
    return response


def error(status: int, detail: str, **more: str) -> requests.Response:
    return answer(status, {"errors": [{"status": status, "detail": detail, **more}]})


def client(session: Session, clock: Clock | None = None, **config: Any) -> PlacementHttp:
    clock = clock or Clock()
    return PlacementHttp(PlacementConfig(**config), session=session, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]


class TestRequests:
    def test_says_microversion_and_token_in_headers_only(self) -> None:
        session = Session(answer(200, {}))
        http = client(session, url="http://placement:8778/")
        http.get("/traits", http.deadline())
        (asked,) = session.asked
        assert asked["url"] == "http://placement:8778/traits"
        assert asked["headers"]["OpenStack-API-Version"] == "placement 1.39"
        assert asked["headers"]["X-Auth-Token"] == "admin"
        assert asked["allow_redirects"] is False

    @pytest.mark.parametrize(("timeout", "remaining", "expected"), [(10, 30, 10), (10, 3, 3), (0.5, 30, 0.5)])
    def test_no_request_outlasts_its_timeout_or_the_deadline(self, timeout: float, remaining: float, expected: float) -> None:
        clock, session = Clock(), Session(answer(200, {}))
        client(session, clock, timeout_seconds=timeout).get("/", Deadline(remaining, clock))
        assert session.asked[0]["timeout"].total == expected

    def test_after_the_deadline_nothing_is_sent(self) -> None:
        clock, session = Clock(), Session(answer(200, {}))
        with pytest.raises(PlacementUnavailable) as caught:
            client(session, clock).write("PUT", "/x", {}, Deadline(0, clock))
        assert not caught.value.outcome_unknown
        assert not session.asked

    def test_reads_are_repeated_with_growing_pauses_until_the_deadline(self) -> None:
        clock, session = Clock(), Session(answer(503))
        with pytest.raises(PlacementUnavailable, match="503"):
            client(session, clock).get("/traits", Deadline(10, clock))
        assert 5 < len(session.asked) < 20
        assert sum(clock.slept) < 10
        assert clock.slept[0] <= 0.1 < clock.slept[-1] <= 2.0

    def test_a_pause_that_the_server_asks_for_is_kept_and_one_beyond_the_deadline_ends_it(self) -> None:
        clock, session = Clock(), Session(answer(503, None, Retry_After="4"))
        with pytest.raises(PlacementUnavailable) as caught:
            client(session, clock).get("/traits", Deadline(10, clock))
        assert clock.slept == [4.0, 4.0]
        assert caught.value.retry_after == 4.0

    @pytest.mark.parametrize("late", [requests.ReadTimeout(), requests.ConnectTimeout()])
    def test_a_server_that_answers_too_late_is_left_in_peace_for_a_while(self, late: requests.Timeout) -> None:
        clock, session = Clock(), Session(late)
        with pytest.raises(PlacementUnavailable) as caught:
            client(session, clock, timeout_seconds=4).get("/traits", Deadline(10, clock))
        assert caught.value.is_overloaded
        assert 2.0 <= clock.slept[0] <= 4.0, "about as long as it was waited for"

    def test_one_that_is_not_there_is_asked_again_soon(self) -> None:
        clock, session = Clock(), Session(requests.ConnectionError("refused"))
        with pytest.raises(PlacementUnavailable) as caught:
            client(session, clock).get("/traits", Deadline(10, clock))
        assert not caught.value.is_overloaded
        assert clock.slept[0] <= 0.1

    def test_a_write_that_may_have_been_done_is_looked_up_without_delay(self) -> None:
        clock = Clock()
        with pytest.raises(PlacementUnavailable) as caught:
            client(Session(requests.ReadTimeout()), clock).write("PUT", "/x", {}, Deadline(10, clock))
        assert caught.value.outcome_unknown
        assert caught.value.retry_after is None

    def test_who_asks_again_anyway_is_told_at_once(self) -> None:
        clock, session = Clock(), Session(answer(503))
        with pytest.raises(PlacementUnavailable):
            client(session, clock).get("/traits", Deadline(10, clock), is_once=True)
        assert len(session.asked) == 1

    @pytest.mark.parametrize("header", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-1", "²", "1e9"])
    def test_a_pause_that_is_no_plain_number_is_ignored(self, header: str) -> None:
        clock = Clock()
        with pytest.raises(PlacementUnavailable) as caught:
            client(Session(answer(503, None, Retry_After=header)), clock).write("PUT", "/x", {}, Deadline(10, clock))
        assert caught.value.retry_after is None


class TestWhatItMeans:
    @pytest.mark.parametrize(("status", "unknown"), [(500, True), (502, True), (503, True), (504, True), (429, False)])
    def test_a_server_error_leaves_a_write_unknown(self, status: int, unknown: bool) -> None:
        session = Session(answer(status))
        http = client(session)
        with pytest.raises(PlacementUnavailable) as caught:
            http.write("PUT", "/allocations/x", {}, http.deadline())
        assert caught.value.outcome_unknown is unknown
        assert len(session.asked) == 1

    def test_errors_are_told_by_their_code_and_shown_in_placements_own_words(self) -> None:
        detail = "There was a conflict when trying to complete your request.\n\n resource provider generation  conflict  "
        http = client(Session(error(409, detail, code="placement.concurrent_update")))
        got = http.write("PUT", "/x", {}, http.deadline())
        assert (got.status, got.code, got.detail) == (
            409,
            "placement.concurrent_update",
            "resource provider generation conflict",
        )
        assert not got.is_success

    def test_a_schema_dump_and_control_characters_do_not_reach_people(self) -> None:
        http = client(Session(error(400, "Wrong.\n\n 'x' is \x1b[31mbad\n\nFailed validating 'type' in schema: {'a': 1}")))
        assert http.get("/x", http.deadline()).detail == "'x' is \\x1b[31mbad"

    @pytest.mark.parametrize("response", [
        answer(200, {"hello": "world"}, Server="nginx"), answer(404, None, Server="nginx"),
        answer(301, None, Location="https://elsewhere/"),
    ])  # fmt: skip
    def test_something_else_at_that_address_is_a_config_error(self, response: requests.Response) -> None:
        http = client(Session(response), url="http://web:80")
        with pytest.raises(ConfigError, match=r"placement.url http://web:80 is no Placement"):
            http.get("/allocations/x", http.deadline())

    @pytest.mark.parametrize(
        "body", [{}, {"versions": []}, {"versions": [{}]}, [], "hi", {"versions": [{"max_version": "new"}]}]
    )
    def test_a_root_document_of_something_else_is_a_config_error(self, body: object) -> None:
        http = client(Session(answer(200, body)))
        with pytest.raises(ConfigError, match="is no Placement"):
            http.check_version(http.deadline())

    @pytest.mark.parametrize("url", ["placement:8778", "ftp://placement", "http://", "http://[::1", "not a url"])
    def test_an_address_that_cannot_be_used_is_a_config_error(self, url: str) -> None:
        placement = Placement(PlacementConfig(url=url), etcd_prefix="/p/")
        with pytest.raises(ConfigError, match=r"placement\.url"):
            placement.consumer(uuid4())

    def test_an_answer_of_another_shape_is_no_answer(self) -> None:
        clock = Clock()
        placement = Placement(
            PlacementConfig(),
            etcd_prefix="/p/",
            session=Session(answer(200, {"x": 1})),
            clock=clock,
            sleep=clock.sleep,  # type: ignore[arg-type]
        )
        for call in (lambda: placement.consumer(uuid4()), lambda: placement.candidates("resources=VCPU:1")):
            with pytest.raises(PlacementUnavailable, match=MICROVERSION):
                call()


class TestConnections:
    def test_who_asks_seldom_keeps_no_connection_that_others_could_use(self) -> None:
        for keeps, header in ((True, None), (False, "close")):
            session = Session(answer(200, {"allocations": {}}))
            placement = Placement(
                PlacementConfig(), etcd_prefix="/p/", keeps_connections=keeps, session=session,  # type: ignore[arg-type]
            )  # fmt: skip
            placement.consumer(uuid4())
            assert session.asked[0]["headers"].get("Connection") == header


class TestVersion:
    def test_an_older_server_is_named_with_what_we_need_whichever_call_comes_first(self) -> None:
        refusal = answer(
            406, {"errors": [{"status": 406, "detail": "x", "max_version": "1.36", "min_version": "1.0"}]}, Server="x"
        )
        http = client(Session(refusal))
        with pytest.raises(EcomputeError, match=r"up to 1\.36, etcd-compute needs 1\.39: upgrade"):
            http.get("/allocations/x", http.deadline())
        http = client(Session(answer(200, {"versions": [{"max_version": "1.36"}]})))
        with pytest.raises(EcomputeError, match=r"up to 1\.36, etcd-compute needs 1\.39: upgrade"):
            http.check_version(http.deadline())

    @pytest.mark.parametrize("newest", ["1.39", "1.40", "1.100", "2.0"])
    def test_versions_are_compared_as_numbers(self, newest: str) -> None:
        http = client(Session(answer(200, {"versions": [{"max_version": newest}]})))
        assert http.check_version(http.deadline()) == newest


class TestToken:
    @pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"secret-\xff\xfe", "sécret".encode()])
    def test_a_file_that_holds_no_token_is_named_and_not_quoted(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "token"
        path.write_bytes(content)
        http = client(Session(answer(200, {})), token_file=path)
        with pytest.raises(ConfigError) as caught:
            http.get("/x", http.deadline())
        assert str(path) in str(caught.value)
        assert "cret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        http = client(Session(answer(200, {})), token_file=tmp_path / "token")
        with pytest.raises(ConfigError, match="No such file"):
            http.get("/x", http.deadline())

    def test_a_renewed_token_is_read_when_the_old_one_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("old\n")
        session = Session(answer(200, {}), answer(401), answer(200, {}))
        http = client(session, token_file=path)
        http.get("/x", http.deadline())
        path.write_text("new\n")
        http.write("PUT", "/x", {}, http.deadline())
        assert [asked["headers"]["X-Auth-Token"] for asked in session.asked] == ["old", "old", "new"]

    def test_a_token_that_stays_refused_is_asked_once_and_never_shown(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        path = tmp_path / "token"
        path.write_text("topsecret")
        session = Session(answer(401))
        http = client(session, token_file=path)
        with pytest.raises(ConfigError, match="refuses") as caught:
            http.get("/x", http.deadline())
        assert len(session.asked) == 1
        assert "topsecret" not in str(caught.value) + caplog.text


def test_importing_the_module_does_not_import_requests() -> None:
    program = "import common.placement, sys; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
