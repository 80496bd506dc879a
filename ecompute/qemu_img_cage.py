"""Runs ``qemu-img`` on files that may come from anybody, in a child that can do little.

It is given open files and nothing else: as nobody, without new privileges, bounded in address space, time and file size. It
dies with the thread that started it. Knows nothing of what it is run for; ``image_conversion`` and ``disk_copies`` name the
formats, since QEMU is never to guess.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from common.errors import ImageInvalid, NoSpace, Permanent

_NOBODY = 65534
_MOST_MEMORY_BYTES = 2 << 30  # of address space: QEMU reserves far more than it uses
_MOST_OUTPUT_BYTES = 1 << 20
_LAST_OUTPUT_BYTES = 64
_LOOK_EVERY_SECONDS = 0.1


@contextlib.contextmanager
def lent(descriptors: tuple[int, ...], what: str, to_be: str) -> Iterator[None]:
    """The files belong to nobody meanwhile, who opens them by the descriptors, without a way to their folder."""
    if os.geteuid() != 0:
        yield
        return
    before = [(descriptor, os.fstat(descriptor)) for descriptor in descriptors]
    try:
        try:
            for descriptor, _ in before:
                os.fchown(descriptor, _NOBODY, _NOBODY)
        except PermissionError as error:
            raise Permanent(
                f"{what} cannot be {to_be}: ecompute may not hand files to nobody; give its service the capabilities "
                "CAP_CHOWN, CAP_SETUID and CAP_SETGID, as the unit that comes with it does, or convert the image yourself",
                "MayNotConvert",
            ) from error
        yield
    finally:
        for descriptor, found in before:
            if os.fstat(descriptor).st_uid != found.st_uid:
                os.fchown(descriptor, found.st_uid, found.st_gid)


def run(
    arguments: list[str], descriptors: tuple[int, ...], *, what: str, to_be: str, seconds: int, most_file_bytes: int,
    report: Callable[[bytes], None],
) -> bytes:  # fmt: skip
    """What ``qemu-img`` prints.

    Args:
        what: what it works on, which is *to_be* "converted" or the like; for messages.
        report: called often with the last of what it has printed so far; what it raises ends it.

    Raises:
        ImageInvalid: it failed, or took longer than *seconds*.
        NoSpace: there is no room. Permanent: there is no qemu-img.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise Permanent(f"{what} cannot be {to_be}: qemu-img is not on this host (apt-get install qemu-utils)", "NoQemuImg")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*_cage(seconds, most_file_bytes), program, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/", start_new_session=True,
            pass_fds=descriptors, env={"PATH": os.defpath, "LC_ALL": "C", "MALLOC_ARENA_MAX": "1"},
        )  # fmt: skip
        try:
            code = _wait(process, seconds, lambda: report(_last_of(output.fileno())))
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, on a disk that does not answer
                    process.wait(timeout=10)
        output.seek(0)
        told = output.read(_MOST_OUTPUT_BYTES)
    if code is None:
        raise ImageInvalid(f"{what} is not {to_be} within {seconds} s: convert it yourself (qemu-img convert -O qcow2)")
    if code:
        raise _failure(what, to_be, code, told)
    return told


def _last_of(descriptor: int) -> bytes:
    """By its offset, which the child does not see: the two share the one of the open file."""
    return os.pread(descriptor, _LAST_OUTPUT_BYTES, max(0, os.fstat(descriptor).st_size - _LAST_OUTPUT_BYTES))


def _cage(seconds: int, most_file_bytes: int) -> list[str]:
    limits = ["prlimit", f"--as={_MOST_MEMORY_BYTES}", f"--cpu={seconds}", f"--fsize={most_file_bytes}", "--core=0", "--"]
    rights = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
    if os.geteuid() == 0:
        # Whoever is no longer root has no capabilities, and without new privileges gets none.
        rights += [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    return [*limits, *rights, "--"]


def _wait(process: subprocess.Popen[bytes], seconds: int, report: Callable[[], None]) -> int | None:
    """Its exit code; None where it is still at it after *seconds*."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        report()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK_EVERY_SECONDS)
    return None


def _failure(what: str, to_be: str, code: int, told: bytes) -> ImageInvalid | NoSpace:
    text = " ".join("".join(c if c.isprintable() else " " for c in told[-500:].decode("utf-8", "replace")).split())
    if "No space left" in text:
        return NoSpace(f"{what} cannot be {to_be}: {text}; free space on the file system of paths.state_dir")
    how = f"qemu-img was ended by signal {-code}" if code < 0 else f"qemu-img says: {text}"
    return ImageInvalid(f"{what} cannot be {to_be}, it is damaged or of a kind that is not known: {how}")
