"""Nothing that a guest writes is obeyed by the operator's terminal, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eschedule.terminal_text import Plain


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain\ttext\r\n", "plain\ttext\n"),
        (b"\x1b[0;32m OK \x1b[0m\n", " OK \n"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[2J\x1b[6n", "\\x1b[2J\\x1b[6n"),
        (b"over\rwritten", "over\\x0dwritten"),
        ("größe \u202e".encode(), "größe \\u202e"),
        (b"\xff\x9b31m", "\\xff\\x9b31m"),
        ("\u009b31m".encode(), "\\x9b31m"),
        (b"login: ", "login: "),
        (b"half \x1b[3", "half \\x1b[3"),
    ],
)
def test_what_is_shown(data: bytes, shown: str) -> None:
    assert Plain().feed(data, is_last=True) == shown


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_the_same_whole_and_in_pieces_and_harmless(data: bytes, cuts: list[int]) -> None:
    whole = Plain().feed(data, is_last=True)
    assert all(c in "\n\t" or c.isprintable() for c in whole)
    plain, at, parts = Plain(), 0, ""
    for cut in sorted(cuts):
        parts += plain.feed(data[at:cut])
        at = max(at, cut)
    assert parts + plain.feed(data[at:], is_last=True) == whole


def test_a_prompt_is_not_held_back() -> None:
    assert Plain().feed(b"login: ") == "login: "
