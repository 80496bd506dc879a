"""Text that came from outside, made fit to show: on one line, printable, not too long; the nearest known word; moments.

Used wherever a message, a log line or a terminal repeats what a user, a guest or a file said. Pure; knows nothing of ours.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

_MOST_CAUSES = 10  # they may go round in a circle
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def escaped(text: str) -> str:
    """*text* with every character that is not printable (controls, line ends, bidi marks, surrogates) as an escape.

    What a terminal would obey, or a reader of logs take for the start of another line, comes out as plain characters.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_SHORT.get(c) or (c if c.isprintable() else _escape(c)) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shortened(text: str, most: int) -> str:
    """*text*, or its first *most* characters and how many more there are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} more characters)"


def quoted(text: str, most: int = 60) -> str:
    """*text* for a message: in double quotes, escaped, at most *most* characters of it."""
    return f'"{escaped(shortened(text, most))}"'


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of *known* that somebody who typed *word* most likely meant, if any is near."""
    import difflib  # noqa: PLC0415 - only mistakes need it

    by_folded = {k.casefold().replace("-", "_"): k for k in known}
    matches = difflib.get_close_matches(word[:200].casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def counted(number: int, noun: str) -> str:
    """``1 host``, ``2 hosts``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc_text(moment: datetime.datetime) -> str:
    """*moment*, which knows its time zone, as records and logs have it: RFC 3339 in UTC, to the millisecond."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def innermost_cause(error: BaseException) -> str:
    """The innermost cause of *error* in one line: what is wrapped around it only repeats the address, with its secrets."""
    for _ in range(_MOST_CAUSES):
        around = (getattr(error, "reason", None), error.__cause__, *error.args, error.__context__)
        inner = next((one for one in around if isinstance(one, BaseException) and one is not error), None)
        if inner is None:
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
