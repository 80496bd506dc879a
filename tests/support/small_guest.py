"""A guest that costs next to nothing: an image whose boot sector is the whole system.

It says one ``B`` on the serial line each time that it boots, sleeps, and switches itself off when the power button is pressed;
the deaf kind ignores the button, the slow kind takes two seconds to go down, as others do that have services to stop. Under
emulation it boots in a third of a second and then takes no processor time to speak of, where a disk without a system has the
BIOS spin for ever.
"""

from __future__ import annotations

import struct
from pathlib import Path

BOOT_MARK = "B"

_SPEAK = bytes.fromhex(
    "fa 31c0 8ed0 bc007c"  # cli; ss:sp = 0:7c00
    "baf803 b042 ee"  # out 3f8, 'B'
)
# The power management registers are where SeaBIOS puts them on i440fx and on q35: status 600, enable 602, control 604.
_LISTEN = bytes.fromhex(
    "ba0206 b80001 ef"  # enable the power button's event
    "fb f4"  # sti; hlt: the timer wakes it 18 times a second
    "ba0006 ed f6c401 74f5"  # until the status says that the button was pressed
)
_TAKE_LEAVE = bytes.fromhex("b92400 f4 e2fd")  # mov cx, 36; hlt; so often
_GO = bytes.fromhex("ba0406 b80020 ef")  # off
_SLEEP = bytes.fromhex("fa f4 ebfc")  # cli; hlt; again


def make_small_guest(
    path: Path, *, size_mib: int = 1, follows_the_button: bool = True, is_slow: bool = False, content: bytes = b""
) -> Path:
    """Write the raw image to *path*; *content* makes it differ from others."""
    record = bytearray(512)
    leave = _LISTEN + (_TAKE_LEAVE if is_slow else b"") + _GO
    code = _SPEAK + (leave if follows_the_button else b"") + _SLEEP
    record[: len(code)] = code
    record[446:462] = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\0\0\0", 1, size_mib * 2048 - 1)
    record[510:512] = b"\x55\xaa"
    with path.open("wb") as image:
        image.write(bytes(record) + content)
        image.truncate(size_mib << 20)
    return path
