"""What runs that crashed have left: half-made files, folders of no instance, guests that etcd knows nothing of, locks.

Only what is certainly nobody's is cured here: files whose writer is dead, and lock files of nobody. What may be
somebody's data is named with ``eschedule audit`` and ``adopt``, which look at the whole cluster before they touch anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import UUID

from common.checkup import Check, Result, ok, warning
from common.errors import Conflict
from common.files import PARTIAL
from common.host_checkup import few
from common.lockfile import LockFile
from common.reports import SOCKET_NAME
from ecompute.doctor.scene import Scene

LEAST_SECONDS = 60.0  # nothing younger is called left behind, whoever made it
DEEPEST = 4  # folders below the state directory
_WRITER = re.compile(r"\.(\d+)-\d+" + re.escape(PARTIAL) + "$")
_SHOWN = 5


def checks(scene: Scene) -> list[Check]:
    return [
        Check("half-made files", lambda: _partials(scene)),
        Check("locks", lambda: _locks(scene)),
        Check("guests and folders", lambda: _guests(scene)),
    ]


def _partials(scene: Scene) -> Iterator[Result]:
    state = scene.config.paths.state_dir
    left = dead_partials(state, now=time.time())
    if left:
        size, shown = sum(_size(path) for path in left), few((path.name for path in left), _SHOWN)
        yield warning(
            "half-made files", f"{len(left)} whose writers are dead, {size // 1024} KiB: {shown}",
            f"find {state} -name '*{PARTIAL}', and remove those", lambda: _remove(left),
        )  # fmt: skip
    else:
        yield ok("half-made files", "none is left of a run that crashed")


def dead_partials(directory: Path, *, now: float) -> list[Path]:
    """The files below *directory* that somebody began and nobody will finish: their writer is dead and no lock is on them.

    Args:
        now: Unix time.
    """
    found = []
    for folder, names, files in os.walk(directory):
        if len(Path(folder).relative_to(directory).parts) >= DEEPEST:
            names.clear()
        found += [path for path in (Path(folder, name) for name in files) if _is_dead(path, now)]
    return sorted(found)


def _is_dead(path: Path, now: float) -> bool:
    writer = _WRITER.search(path.name)
    is_left = writer is not None and not Path("/proc", writer[1]).exists() and _age(path, now) > LEAST_SECONDS
    return is_left and not _is_locked(path)


def _age(path: Path, now: float) -> float:
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0  # gone meanwhile


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0


def _is_locked(path: Path) -> bool:
    """A fetch holds a lock on its file, also from another container, whose process ids are not ours."""
    if path.is_symlink():
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _remove(paths: Iterable[Path]) -> str:
    removed = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # ecompute was faster
            if _is_dead(path, time.time()):  # a new process may have got that number since
                path.unlink()
                removed += 1
    return f"removed {removed} half-made files"


def _locks(scene: Scene) -> Iterator[Result]:
    """A lock itself cannot be left behind, for the kernel frees it; a file of a provider that this host was once can."""
    run = scene.config.paths.run_dir
    own = f"{scene.provider}.lock"
    left = [path for path in sorted(run.glob("*.lock")) if _uuid(path.stem) and path.name != own and _is_free(path)]
    if left:
        shown = few((path.name for path in left), _SHOWN)
        yield warning(
            "locks", f"{shown} in {run}: of providers that this host is not, held by nobody",
            f"cd {run} && rm {' '.join(path.name for path in left)}", lambda: _remove_locks(left),
        )  # fmt: skip
    bell = run / SOCKET_NAME
    if bell.exists() and not bell.is_socket():
        yield warning("locks", f"{bell} is no socket, and guests' reports come late", f"rm -r {bell}, and restart ecompute")
    elif not left:
        yield ok("locks", f"in {run} nothing is left of others")


def _is_free(path: Path) -> bool:
    return path.is_file() and LockFile(path).holder() is None


def _remove_locks(paths: Iterable[Path]) -> str:
    """Each is taken first, so that nobody who begins to use it is left with a file that has no name."""
    done = []
    for path in paths:
        lock = LockFile(path)
        with contextlib.suppress(Conflict):  # somebody has begun to use it
            lock.acquire({"program": "ecompute doctor"})
            path.unlink(missing_ok=True)
            lock.release()
            done.append(path.name)
    return f"removed {', '.join(done) or 'nothing: somebody uses them by now'}"


def _guests(scene: Scene) -> Iterator[Result]:
    """Folders first, then specs: a folder is made after its spec, and goes before it."""
    directory = scene.config.paths.state_dir / "instances"
    folders = {uuid for uuid in map(_uuid, _names(directory)) if uuid is not None}
    provider = scene.provider
    domains = {domain.uuid: domain for domain in scene.hypervisor.list()}
    known = {scene.keys.parse_provider_instance(item.key)[1] for item in scene.store.list(scene.keys.specs(provider)).items}
    alone = [d for d in domains.values() if d.stamp and d.stamp.provider == provider and d.uuid not in known]
    domains_left = [d.name for d in alone if scene.hypervisor.get(d.uuid) is not None]  # else destroyed meanwhile
    folders_left = [uuid for uuid in folders - known - domains.keys() if (directory / str(uuid)).exists()]
    if domains_left:
        shown = few(domains_left, _SHOWN)
        yield warning(
            "guests and folders", f"guests of ours that etcd knows nothing of (Quarantined): {shown}; they go on",
            "eschedule adopt NAME takes them back; eschedule audit says more",
        )  # fmt: skip
    if folders_left:
        yield warning(
            "guests and folders", f"disks of no instance in {directory}: {few(map(str, folders_left), _SHOWN)}",
            "eschedule audit, then eschedule audit --fix, which moves them to lost/",
        )  # fmt: skip
    if not domains_left and not folders_left:
        yield ok("guests and folders", f"{len(known)} instances, nothing besides")


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def _uuid(text: str) -> UUID | None:
    with contextlib.suppress(ValueError):
        return UUID(text)
    return None
