"""Tables and blocks of text for people: aligned, escaped, fitted to a terminal, coloured where that is wanted. Pure.

Everything that came from outside is escaped, so that a name or a message can neither move a cursor nor start a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.text import escaped

_GAP = 2
_NAMES, _LEAST_TEXT = 18, 20  # what names at the beginning of lines take of a terminal, and what is left for the text at least
_COLOURS = {"red": 31, "green": 32, "yellow": 33}  # SGR of ECMA-48


@dataclass(frozen=True)
class Look:
    """How a text is to look.

    Args:
        width: columns that it may have; None for as many as it takes.
        is_wide: with the columns that only some want.
        has_colour: where the reader is a terminal that takes it.
    """

    width: int | None = None
    is_wide: bool = False
    has_colour: bool = False


PLAIN = Look()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        floor: what it may be cut to, in characters, where the table is too wide; None: it is never cut.
        is_wide: only for those who asked for more.
    """

    name: str
    floor: int | None = None
    is_wide: bool = False


class Coloured(NamedTuple):
    """A cell that says something good, bad or passing by its colour, too."""

    text: str
    colour: str  # red, green or yellow


def table(columns: Sequence[str | Column], rows: Sequence[Sequence[str | Coloured]], look: Look = PLAIN) -> str:
    """*rows* under *columns*, each as wide as its widest cell, two spaces between; no line ends in a space.

    Where it is wider than it may be, columns that may be cut are, the widest first.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    chosen = [i for i, head in enumerate(heads) if look.is_wide or not head.is_wide]
    cells = [[heads[i].name for i in chosen], *([escaped(_text(row[i])) for i in chosen] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(chosen))]
    if look.width is not None:
        widths = fitting(widths, [heads[i].floor for i in chosen], look.width)
    lines = []
    for number, row in enumerate(cells):
        originals = [rows[number - 1][i] for i in chosen] if number else []
        lines.append(_line(row, widths, [_colour(cell) for cell in originals] if look.has_colour else []))
    return "".join(lines)


def fitting(widths: Sequence[int], floors: Sequence[int | None], most: int) -> list[int]:
    """*widths* of columns, of which those with a floor are made smaller until all of them fit into *most*, if they can."""
    found = list(widths)
    while sum(found) + _GAP * (len(found) - 1) > most:
        can = [(width, i) for i, width in enumerate(found) if (floor := floors[i]) is not None and width > floor]
        if not can:
            break
        found[max(can)[1]] -= 1
    return found


def _text(cell: str | Coloured) -> str:
    return cell.text if isinstance(cell, Coloured) else cell


def _colour(cell: str | Coloured) -> str:
    return cell.colour if isinstance(cell, Coloured) else ""


def _line(row: Sequence[str], widths: Sequence[int], colours: Sequence[str]) -> str:
    cut = [cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell, width in zip(row, widths, strict=True)]
    last = max((i for i, cell in enumerate(cut) if cell), default=0)
    parts = []
    for i, (cell, width) in enumerate(zip(cut[: last + 1], widths, strict=False)):
        space = " " * (width - len(cell)) if i < last else ""
        code = _COLOURS.get(colours[i]) if colours else None
        parts.append((f"\x1b[{code}m{cell}\x1b[0m" if code else cell) + space)
    return (" " * _GAP).join(parts) + "\n"


def wrapped(name: str, words: Sequence[str], look: Look) -> list[tuple[str, str]]:
    """*words* with commas between as pairs for ``block``, on as many lines as they take to fit."""
    most = None if look.width is None else max(_LEAST_TEXT, look.width - _NAMES)
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        if most is not None and lines[-1] and len(escaped(longer)) >= most:  # a comma follows
            lines[-1] += ","
            longer = word
            lines.append("")
        lines[-1] = longer
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]


def block(pairs: Sequence[tuple[str, str]]) -> str:
    """*pairs* one a line, their values aligned; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    return "".join(f"{name.ljust(width)}  {escaped(value)}\n" for name, value in shown)
