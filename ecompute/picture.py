"""A picture of a guest's screen as PNG, whatever form the hypervisor hands it out in: PNG, or QEMU's older PPM. Pure.

The writer makes plain 8-bit RGB without filters, which is small for what consoles show: few colours, long runs.
"""

from __future__ import annotations

import re
import struct
import zlib

from common.errors import Permanent
from ecompute.hypervisor import Picture

_PNG = b"\x89PNG\r\n\x1a\n"
_PPM = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s+(\d{1,5})\s+255\s", re.ASCII)


def as_png(picture: Picture) -> bytes:
    """*picture* as PNG.

    Raises:
        Permanent: it is in neither form.
    """
    if picture.data.startswith(_PNG):
        return picture.data
    head = _PPM.match(picture.data)
    if head is None:
        raise Permanent(
            f"the hypervisor gave a picture of the kind {picture.media_type[:60]!r}, which is not known", "NoPicture"
        )
    width, height = int(head[1]), int(head[2])
    pixels = memoryview(picture.data)[head.end() :]
    if not width or not height or len(pixels) < 3 * width * height:
        raise Permanent("the hypervisor gave half a picture; try again", "NoPicture")
    rows = b"".join(b"\0" + pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    return b"".join(
        (_PNG, _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), _chunk(b"IDAT", zlib.compress(rows, 9)),
         _chunk(b"IEND", b""))
    )  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
