"""``qemu-img`` as a child that can do little: as nobody, without new privileges, bounded in memory, time and file size.

It is given open files and nothing else, named by their descriptors, and dies with the thread that started it. What it is to
do, and what its failure means, is its callers' affair: ``image_conversion``, ``disk_copies``, ``disk_snapshots``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from common.errors import ImageInvalid, NoSpace, Permanent

NOBODY = 65534
_MOST_MEMORY_BYTES = 2 << 30  # of address space: QEMU reserves far more than it uses
_MOST_OUTPUT_BYTES = 1 << 20
_LAST_OUTPUT_BYTES = 64
_LOOK_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Ending:
    """How a child ended; *code* is None where it had to be ended because it took too long, below 0 where a signal did it."""

    code: int | None
    told: bytes

    @property
    def text(self) -> str:
        """The end of what it said, in one line."""
        told = self.told[-500:].decode("utf-8", "replace")
        return " ".join("".join(c if c.isprintable() else " " for c in told).split())


def run(
    arguments: Sequence[str], descriptors: tuple[int, ...], *, what: str, seconds: int, most_file_bytes: int,
    report: Callable[[bytes], None] = lambda _: None,
) -> Ending:  # fmt: skip
    """Run it.

    Args:
        what: is to be done, for messages: "image x cannot be converted".
        report: called often with the last of what it has printed so far; what it raises ends the child.

    Raises:
        Permanent: there is none on this host.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise Permanent(f"{what}: qemu-img is not on this host (apt-get install qemu-utils)", "NoQemuImg")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*cage(seconds, most_file_bytes), program, *arguments],
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
        return Ending(code, output.read(_MOST_OUTPUT_BYTES))


def on_image(
    arguments: Sequence[str], descriptors: tuple[int, ...], *, what: str, to_be: str, seconds: int, most_file_bytes: int,
    report: Callable[[bytes], None],
) -> bytes:  # fmt: skip
    """What it prints, run on an image that may come from anybody.

    Args:
        what: the image, which is *to_be* "converted" or the like; for messages.

    Raises:
        ImageInvalid: it failed, or took longer than *seconds*.
        NoSpace: there is no room. Permanent: as ``run``.
    """
    ending = run(
        arguments,
        descriptors,
        what=f"{what} cannot be {to_be}",
        seconds=seconds,
        most_file_bytes=most_file_bytes,
        report=report,
    )  # fmt: skip
    if ending.code is None:
        raise ImageInvalid(f"{what} is not {to_be} within {seconds} s: convert it yourself (qemu-img convert -O qcow2)")
    if ending.code:
        raise _failure(f"{what} cannot be {to_be}", ending)
    return ending.told


def _failure(what: str, ending: Ending) -> ImageInvalid | NoSpace:
    text, code = ending.text, ending.code or 0
    if "No space left" in text:
        return NoSpace(f"{what}: {text}; free space on the file system of paths.state_dir")
    how = f"qemu-img was ended by signal {-code}" if code < 0 else f"qemu-img says: {text}"
    return ImageInvalid(f"{what}, it is damaged or of a kind that is not known: {how}")


def _last_of(descriptor: int) -> bytes:
    """By its offset, which the child does not see: the two share the one of the open file."""
    return os.pread(descriptor, _LAST_OUTPUT_BYTES, max(0, os.fstat(descriptor).st_size - _LAST_OUTPUT_BYTES))


@contextlib.contextmanager
def lent(descriptors: Sequence[int], what: str) -> Iterator[None]:
    """The files belong to nobody meanwhile, who opens them by the descriptors, without a way to their folder."""
    if os.geteuid() != 0:
        yield
        return
    before = [(descriptor, os.fstat(descriptor)) for descriptor in descriptors]
    try:
        try:
            for descriptor, _ in before:
                os.fchown(descriptor, NOBODY, NOBODY)
        except PermissionError as error:
            raise Permanent(
                f"{what}: ecompute may not hand files to nobody; give its service the capabilities CAP_CHOWN, CAP_SETUID and "
                "CAP_SETGID, as the unit that comes with it does",
                "MayNotLend",
            ) from error
        yield
    finally:
        for descriptor, found in before:
            if os.fstat(descriptor).st_uid != found.st_uid:
                os.fchown(descriptor, found.st_uid, found.st_gid)


def cage(seconds: int, most_file_bytes: int) -> list[str]:
    """What stands before a command that is to be run so."""
    limits = ["prlimit", f"--as={_MOST_MEMORY_BYTES}", f"--cpu={seconds}", f"--fsize={most_file_bytes}", "--core=0", "--"]
    rights = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
    if os.geteuid() == 0:
        # Whoever is no longer root has no capabilities, and without new privileges gets none.
        rights += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*limits, *rights, "--"]


def _wait(process: subprocess.Popen[bytes], seconds: int, report: Callable[[], None]) -> int | None:
    """Its exit code; None where it is still at it after *seconds*."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        report()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK_EVERY_SECONDS)
    return None
