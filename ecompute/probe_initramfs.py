"""The initramfs of the KVM probe: one static program that says it runs and switches the machine off. Made here, byte by byte.

So the probe needs nothing of the host but QEMU and a kernel, and no binary is shipped. Pure; only ``kvm_probe`` uses it.
"""

from __future__ import annotations

import struct

# Short enough to pass a serial port's buffer of 16 bytes in one piece, so that no kernel message comes in between.
TOKEN = b"EC-USER-SPACE"

_LOAD_ADDRESS = 0x400000
_ELF_HEADER_BYTES, _PROGRAM_HEADER_BYTES = 64, 56

# linux/reboot.h
_REBOOT_MAGIC1, _REBOOT_MAGIC2, _REBOOT_POWER_OFF = 0xFEE1DEAD, 0x28121969, 0x4321FEDC
# asm/unistd_64.h; a call takes its number in rax and its arguments in rdi, rsi, rdx
_SYS_WRITE, _SYS_IOCTL, _SYS_REBOOT = 1, 16, 169
_TCSBRK = 0x5409  # asm-generic/ioctls.h; with the argument 1 it is tcdrain(3)


def _program() -> bytes:
    """x86-64 code, with its data behind it::

    write(1, TOKEN "\\n", sizeof); ioctl(1, TCSBRK, 1); reboot(MAGIC1, MAGIC2, POWER_OFF); for (;;);
    """
    data = TOKEN + b"\n"
    before = _eax(_SYS_WRITE) + _edi(1)  # the kernel gives its first process the console as 0, 1 and 2
    after = _edx(len(data)) + _SYSCALL
    after += _eax(_SYS_IOCTL) + _edi(1) + _esi(_TCSBRK) + _edx(1) + _SYSCALL
    after += _eax(_SYS_REBOOT) + _edi(_REBOOT_MAGIC1) + _esi(_REBOOT_MAGIC2) + _edx(_REBOOT_POWER_OFF) + _SYSCALL
    after += b"\xeb\xfe"  # jmp to itself: a first process that ends is a kernel panic
    data_address = b"\x48\x8d\x35" + struct.pack("<i", len(after))  # lea rsi, [rip + distance to the data]
    return before + data_address + after + data


_SYSCALL = b"\x0f\x05"


def _eax(value: int) -> bytes:
    return b"\xb8" + struct.pack("<I", value)  # mov eax, value


def _edi(value: int) -> bytes:
    return b"\xbf" + struct.pack("<I", value)


def _esi(value: int) -> bytes:
    return b"\xbe" + struct.pack("<I", value)


def _edx(value: int) -> bytes:
    return b"\xba" + struct.pack("<I", value)


def probe_init() -> bytes:
    """A static ELF executable of one loadable segment, which is the whole file."""
    body = _program()
    headers = _ELF_HEADER_BYTES + _PROGRAM_HEADER_BYTES
    identification = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian, version 1, System V
    elf_header = identification + struct.pack(
        "<HHIQQQIHHHHHH",
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,  # version
        _LOAD_ADDRESS + headers,  # entry point
        _ELF_HEADER_BYTES,  # where the program header is
        0,  # no sections
        0,  # flags
        _ELF_HEADER_BYTES, _PROGRAM_HEADER_BYTES, 1, 0, 0, 0,
    )  # fmt: skip
    size = headers + len(body)
    program_header = struct.pack(
        "<IIQQQQQQ",
        1,  # PT_LOAD
        5,  # readable and executable
        0,  # from the beginning of the file
        _LOAD_ADDRESS, _LOAD_ADDRESS, size, size,
        0x1000,  # alignment
    )  # fmt: skip
    return elf_header + program_header + body


def _cpio_entry(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of a "newc" cpio archive: a header of hexadecimal fields with the name, and the data, each padded to 4 bytes."""
    path = name.encode("ascii") + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device that it is on (major, minor), device that it is, size of name, check
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def probe_initramfs() -> bytes:
    """A cpio archive with ``/init`` and the console that the kernel opens for it."""
    return (
        _cpio_entry(1, "dev", 0o040755)
        + _cpio_entry(2, "dev/console", 0o020600, device=(5, 1))
        + _cpio_entry(3, "init", 0o100755, probe_init())
        + _cpio_entry(0, "TRAILER!!!", 0)
    )
