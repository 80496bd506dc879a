"""Small disk images for tests, made by QEMU's own tool."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

MIB = 1 << 20


def qemu_img(*arguments: str | Path) -> str:
    """The output of ``qemu-img``; its complaint as an AssertionError."""
    done = subprocess.run(
        ["qemu-img", *(str(argument) for argument in arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"qemu-img {arguments}: {done.stderr}{done.stdout}"
    return done.stdout


def qemu_img_info(path: Path, *arguments: str) -> Any:
    return json.loads(qemu_img("info", "--output=json", *arguments, path))


def qemu_io(path: Path, *commands: str) -> str:
    """The output of ``qemu-io`` for *commands* on the qcow2 *path*; a failed or differing read as an AssertionError."""
    arguments = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", *arguments, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    wrong = done.returncode or any(sign in done.stdout for sign in ("failed", "error"))
    assert not wrong, f"qemu-io {commands}: {done.stderr}{done.stdout}"
    return done.stdout


def make_qcow2(path: Path, *, size_mib: int = 4, pattern: int = 0x5A, options: str = "") -> Path:
    """A qcow2 of *size_mib* MiB whose second mebibyte holds *pattern*."""
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, f"{size_mib}M")
    qemu_io(path, f"write -q -P {pattern} 1M 1M")
    return path


def make_raw(path: Path, *, size_mib: int = 4, pattern: int = 0x5A) -> Path:
    """A raw disk of *size_mib* MiB with a boot sector's signature, whose second mebibyte holds *pattern*; the rest is holes."""
    with path.open("wb") as output:
        output.truncate(size_mib * MIB)
        output.seek(510)
        output.write(b"\x55\xaa")
        output.seek(MIB)
        output.write(bytes([pattern]) * MIB)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
