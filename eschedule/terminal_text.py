"""What a guest wrote, made fit for a terminal: nothing in it is obeyed, all of it can be seen. Pure.

A terminal can be made to answer, to change its title, to redefine its keys, to hide text. So but for line feeds, tabs and
printable characters everything comes out as an escape (``\\x1b``), and colours, of which boot messages are full, are left out.
"""

from __future__ import annotations

import codecs
import re

_COLOUR = re.compile(r"\x1b\[[0-9;]{0,32}m")
_BEGUN = re.compile(r"\r|\x1b(\[[0-9;]{0,32})?")  # at the end of a piece: what follows decides
_PLAIN = "\n\t"


class Plain:
    """Text for a terminal from bytes that come in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, *, is_last: bool = False) -> str:
        """The text of *data*, with what was held back before; *is_last* holds nothing back."""
        text = self._held + self._decoder.decode(data, is_last)
        self._held = ""
        if not is_last and (begun := re.search(f"(?:{_BEGUN.pattern})\\Z", text)):
            text, self._held = text[: begun.start()], begun[0]
        text = _COLOUR.sub("", text).replace("\r\n", "\n")
        return "".join(c if c.isprintable() or c in _PLAIN else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
