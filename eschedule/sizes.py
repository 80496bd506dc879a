"""Sizes as people write them (``4G``, ``512MiB``), in the units that Placement counts in. Pure.

All of them are powers of two, as with QEMU and Placement: MEMORY_MB is MiB, DISK_GB is GiB, whatever their names say. A size
that is no whole number of them is refused rather than rounded, and so is one without a unit, which would be a guess.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from common.errors import ConfigError
from common.text import quoted

_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,6})?) ?(?P<unit>[A-Za-z]*)")
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MIB, GIB = _BYTES["M"], _BYTES["G"]
_UNITS = "K, M, G or T, or KiB, MiB, GiB, TiB, which are the same"


def parse_size(text: str, where: str, unit_bytes: int, example: str) -> int:
    """*text* in units of *unit_bytes*.

    Args:
        where: the option or field, for messages.
        example: what is right there.

    Raises:
        ConfigError: it is no size, has no unit or a strange one, or comes to no whole number.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ConfigError(f"{where} {quoted(text)} is no size; write a number and a unit ({_UNITS}), as in {example}")
    number, unit = Fraction(found["number"]), found["unit"]
    letter = unit[:1].upper()
    if not unit:
        raise ConfigError(f"{where} {text} has no unit; write {text}G or {text}M, as in {example}")
    if letter not in _BYTES or unit.upper() not in (letter, f"{letter}IB"):
        meant = f"{found['number']}{letter}" if letter in _BYTES else example
        raise ConfigError(f"{where} {quoted(text)}: {quoted(unit)} is none of the units {_UNITS}; write {meant}")
    size = number * _BYTES[letter] / unit_bytes
    if size.denominator != 1 or size < 1:
        name = "GiB" if unit_bytes == GIB else "MiB"
        near = max(1, math.ceil(size))
        raise ConfigError(f"{where} {text} is no whole number of {name}; write {near}{name[0]}")
    return int(size)


def size_text(amount: int, unit_bytes: int) -> str:
    """*amount* of *unit_bytes* as ``parse_size`` reads it, in the largest unit that takes a whole number."""
    size = amount * unit_bytes
    letter = max((name for name, count in _BYTES.items() if size % count == 0), key=lambda name: _BYTES[name])
    return f"{size // _BYTES[letter]}{letter}"
