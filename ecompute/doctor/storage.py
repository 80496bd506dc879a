"""Where guests' disks are: whether ecompute may write there and QEMU pass, how much room there is, how fast it is."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.checkup import Check, Result, failure, ok, warning
from common.config import ComputeConfig
from ecompute.doctor.scene import Scene

GIB, MIB = 1024**3, 1024**2
PROBE_MIB, SYNCS = 8, 3
SLOW_MIB_PER_SECOND, SLOW_SYNC_SECONDS = 5.0, 0.5
LEAST_FREE_GIB = 1.0


@dataclass(frozen=True)
class Speed:
    """How fast a disk keeps what is written: much at once, and a little with each fsync."""

    mib_per_second: float
    sync_seconds: float


def checks(scene: Scene) -> list[Check]:
    config = scene.config
    return [
        Check("state directory", lambda: _directories(config)),
        Check("disk space", lambda: _space(config)),
        Check("disk speed", lambda: _speed(config), 12),
    ]


def _existing(directory: Path) -> Path:
    """*directory*, or its nearest parent that is there."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _directories(config: ComputeConfig) -> Iterator[Result]:
    for name, directory in (("state directory", config.paths.state_dir), ("run directory", config.paths.run_dir)):
        here = _existing(directory)
        found = here.stat()
        text = str(directory) if here == directory else f"{directory}, which is to be made in {here}"
        if not stat.S_ISDIR(found.st_mode):
            yield failure(name, f"{here} is no directory", f"move it away: mv {here} {here}.old")
        elif not os.access(here, os.W_OK | os.X_OK):
            yield failure(
                name,
                f"{text}: this user may not write there",
                "run it as root, or correct owner and mode, or paths in compute.yaml",
            )
        elif here == directory and found.st_mode & stat.S_IWOTH:
            yield failure(
                name, f"{text}: everybody may write there (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod o-w {directory}"
            )
        elif name == "state directory" and (shut := _shut(here)):
            mode = f"{stat.S_IMODE(shut.stat().st_mode):04o}"
            yield warning(name, f"{text}: QEMU, as another user, may not pass {shut} (mode {mode})", f"chmod o+x {shut}")
        else:
            yield ok(name, f"{text}: may be written to")


def _shut(directory: Path) -> Path | None:
    """The outermost of *directory* and its parents that others may not pass."""
    return next((part for part in (*reversed(directory.parents), directory) if not part.stat().st_mode & stat.S_IXOTH), None)


def _space(config: ComputeConfig) -> Iterator[Result]:
    here = _existing(config.paths.state_dir)
    measured = os.statvfs(here)
    free, total = measured.f_bavail * measured.f_frsize / GIB, measured.f_blocks * measured.f_frsize / GIB
    yield judge_space(free, total, config.inventory.disk_gb.reserved, str(here))
    if measured.f_files and measured.f_favail < measured.f_files * 0.01:
        yield failure(
            "disk space", f"{here}: {measured.f_favail} of {measured.f_files} inodes left", "delete what is not needed there"
        )


def judge_space(free: float, total: float, reserved: int, where: str) -> Result:
    """Whether a guest's disk and an image fit; GiB. Pure."""
    text = f"{free:.1f} of {total:.1f} GiB free at {where}, {reserved} reserved (inventory.disk_gb.reserved)"
    if free < LEAST_FREE_GIB:
        return failure("disk space", text, "destroy instances, delete files, or move paths.state_dir to a larger disk")
    if total <= reserved:
        return failure(
            "disk space", f"{text}: nothing is left for guests", "a larger disk, or a smaller inventory.disk_gb.reserved"
        )
    if free < reserved:
        return warning(
            "disk space", f"{text}: less than what is reserved", "delete files, or reserve more, so that less is promised"
        )
    return ok("disk space", text)


def _speed(config: ComputeConfig) -> Iterator[Result]:
    directory = _existing(config.paths.state_dir)
    if not os.access(directory, os.W_OK | os.X_OK) and not _is_read_only(directory):
        return  # of who may write there the state directory has a line
    try:
        yield judge_speed(measure(directory), str(directory))
    except OSError as error:
        yield failure(
            "disk speed",
            f"nothing can be written to {directory}: {error.strerror}",
            "see disk space and dmesg; is it mounted read-only?",
        )


def _is_read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def measure(directory: Path) -> Speed:
    """Write to a file without a name, which nothing can leave behind. Blocks for as long as the disk takes.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = _nameless(directory)
    try:
        block = os.urandom(MIB)
        began = time.monotonic()
        for _ in range(PROBE_MIB):
            os.write(descriptor, block)
        os.fsync(descriptor)
        all_at_once = time.monotonic() - began
        syncs = []
        for _ in range(SYNCS):
            began = time.monotonic()
            os.pwrite(descriptor, block[:4096], 0)
            os.fsync(descriptor)
            syncs.append(time.monotonic() - began)
    finally:
        os.close(descriptor)
    return Speed(PROBE_MIB / max(all_at_once, 1e-6), sorted(syncs)[len(syncs) // 2])


def _nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    path = directory / f"doctor.{os.getpid()}-0.partial"  # a name that is swept up if this dies here
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    path.unlink()
    return descriptor


def judge_speed(speed: Speed, where: str) -> Result:
    """Whether guests will be content. Pure."""
    text = f"{speed.mib_per_second:.0f} MiB/s, {speed.sync_seconds * 1000:.0f} ms for one fsync, at {where}"
    if speed.mib_per_second < SLOW_MIB_PER_SECOND or speed.sync_seconds > SLOW_SYNC_SECONDS:
        wanted = f"at least {SLOW_MIB_PER_SECOND:.0f} MiB/s and at most {SLOW_SYNC_SECONDS * 1000:.0f} ms are wanted"
        return warning("disk speed", f"slow: {text}; {wanted}", "see who writes (iostat -x 1, dmesg), or take a faster disk")
    return ok("disk speed", text)
