"""A small system of its own, in a QEMU of its own, that looks into guests' disks and changes them: libguestfs' appliance.

A disk may hold whatever a stranger put on it, and file systems are large programs. So no disk is ever mounted on the host:
the child that runs ``guestfs_tools`` starts the appliance, as nobody, without new privileges, bounded in memory, file size and
time, and all of it ends with that child. The appliance itself is made of this host's own programs by ``supermin``, once, and
again when those are newer. Knows nothing of what is done inside; called by ``guestfs_tools``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from common.errors import Cancelled, NoSpace, Permanent, Transient
from common.files import file_errors, make_directory
from common.text import escaped, shortened

CHILD = "ecompute.guestfs_tools"
PACKAGES = "apt-get install --no-install-recommends python3-guestfs supermin"
AT_ONCE = 2  # appliances of one host; each takes a processor and MEMORY_MIB
MEMORY_MIB = 512  # of the appliance; checking a file system of a TiB takes about half of it
SUPERMIN_D = ("/usr/lib/x86_64-linux-gnu/guestfs/supermin.d", "/usr/lib/guestfs/supermin.d", "/usr/lib64/guestfs/supermin.d")
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")
KVM_DEVICE = Path("/dev/kvm")
_PACKAGE_LIST = Path("/var/lib/dpkg/status")
_NOBODY = 65534
_MOST_MEMORY_BYTES = 4 << 30  # of address space: QEMU reserves far more than it uses
_BUILD_SECONDS = 120
_LOOK_EVERY_SECONDS = 0.1
_MOST_ANSWER_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20  # a job, which is made of a spec, fits: writing it waits for nobody
_MOST_WORDS_CHARACTERS = 400
_SPARE_BYTES = 1 << 30  # what a qcow2 may have beside the disk's own content


class Appliance:
    """The appliance of one host; safe to use from any thread.

    Args:
        directory: where it is kept, made where it is missing; every user must be able to pass to it.
        run_directory: for what a run needs meanwhile; rid of what dead runs left.
        uses_kvm: whether KVM is proven on this host; else it is emulated, and takes 5 to 10 s to start.
        deadline_seconds: for one run in all.
    """

    def __init__(self, directory: Path, run_directory: Path, *, uses_kvm: bool, deadline_seconds: float) -> None:
        self._directory, self._run_directory = directory, run_directory
        self._uses_kvm, self._deadline_seconds = uses_kvm, deadline_seconds
        self._places, self._building = threading.Semaphore(AT_ONCE), threading.Lock()
        self._made_of: tuple[float, ...] = ()
        shutil.rmtree(run_directory, ignore_errors=True)

    def run(
        self, job: Mapping[str, Any], disk: Path, *, what: str, is_cancelled: Callable[[], bool] = lambda: False,
        most_bytes: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """Have *job* done to *disk* by the child; its answer. Blocks for up to the deadline, and before that for a place.

        Args:
            what: is done to what, for messages: "vm-1's disk cannot be resized".
            most_bytes: that the disk's file may come to have; else what it has, and a little more.

        Raises:
            Permanent: it cannot be done, or was not done in time; *disk* is half-changed then and to be thrown away.
            Cancelled: *is_cancelled* said so; likewise.
        """
        check_installed(what)
        with self._place(is_cancelled):
            began = time.monotonic()
            self._make(what)
            with self._lent(disk, what, is_written=not job.get("is_read_only")), self._scratch(what) as scratch:
                seconds = max(1.0, self._deadline_seconds - (time.monotonic() - began))
                child = _Child(self._command(max(most_bytes, disk.stat().st_size)), self._environment(scratch), scratch)
                return child.answer({**job, "disk": str(disk), **self._owner()}, seconds, what, is_cancelled)

    # -- what it is made of ----------------------------------------------------------------------------------------------------

    def _make(self, what: str) -> None:
        """Have supermin make the appliance of this host's programs, where those are newer than it.

        It looks at them itself, which takes a second or two: not twice, as long as no package was installed.
        """
        with self._building:
            made_of = _changed_at(_PACKAGE_LIST, _parts(), self._directory / "appliance" / "root")
            if made_of and made_of == self._made_of:
                return
            make_directory(self._directory, 0o711)
            for left in self._directory.glob("appliance.*"):  # made beside it and renamed, by one that died before
                shutil.rmtree(left, ignore_errors=True)
            made, lock = self._directory / "appliance", self._directory / "lock"
            command = ["supermin", "--build", "--if-newer", "--lock", str(lock), "--copy-kernel", "-f", "ext2"]
            command += ["--host-cpu", "x86_64", "-o", str(made), str(_parts())]
            environment = {name: os.environ[name] for name in ("SUPERMIN_KERNEL", "SUPERMIN_MODULES") if name in os.environ}
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False,
                    env={"PATH": f"/usr/sbin:/sbin:{os.defpath}", "LC_ALL": "C", "TMPDIR": str(self._directory), **environment},
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise Transient(f"{what}: supermin has not made libguestfs' appliance in {_BUILD_SECONDS} s") from None
            if done.returncode:
                raise _build_failure(what, f"{done.stdout}\n{done.stderr}")
            with file_errors("cannot prepare libguestfs' appliance", made):
                (made / "README.fixed").touch()  # by this name libguestfs knows one that it need not make
                made.chmod(0o755)
                for part in ("kernel", "initrd", "root"):
                    (made / part).chmod(0o644)
            self._made_of = _changed_at(_PACKAGE_LIST, _parts(), made / "root")

    # -- what the child has ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        while not self._places.acquire(timeout=_LOOK_EVERY_SECONDS):
            if is_cancelled():
                raise Cancelled("it is no longer wanted")
        try:
            yield
        finally:
            self._places.release()

    @contextlib.contextmanager
    def _lent(self, disk: Path, what: str, *, is_written: bool) -> Iterator[None]:
        """*disk* belongs to nobody meanwhile."""
        with file_errors(f"{what}: cannot open", disk):
            found = disk.stat()
        if os.geteuid() != 0 or not is_written:
            yield
            return
        try:
            os.chown(disk, _NOBODY, _NOBODY)
        except PermissionError as error:
            raise Permanent(
                f"{what}: ecompute may not hand files to nobody; give its service the capabilities CAP_CHOWN, CAP_SETUID and "
                "CAP_SETGID, as the unit that comes with it does",
                "MayNotChange",
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.chown(disk, found.st_uid, found.st_gid)

    @contextlib.contextmanager
    def _scratch(self, what: str) -> Iterator[Path]:
        """A folder of the child's own, which goes with it."""
        with file_errors(f"{what}: cannot make a folder", self._run_directory):
            make_directory(self._run_directory, 0o711)
            path = Path(tempfile.mkdtemp(dir=self._run_directory))
            if os.geteuid() == 0:
                os.chown(path, _NOBODY, _NOBODY)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _command(self, most_bytes: int) -> list[str]:
        limits = ["prlimit", f"--as={_MOST_MEMORY_BYTES}", f"--fsize={most_bytes + _SPARE_BYTES}", "--core=0", "--"]
        return [*limits, "setpriv", "--no-new-privs", "--", sys.executable, "-m", CHILD]

    def _environment(self, scratch: Path) -> dict[str, str]:
        return {
            "PATH": f"/usr/sbin:/sbin:{os.defpath}",
            "LC_ALL": "C.UTF-8",
            "MALLOC_ARENA_MAX": "1",
            "HOME": str(scratch),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LIBGUESTFS_PATH": str((self._directory / "appliance").absolute()),
            "LIBGUESTFS_BACKEND": "direct",
            "LIBGUESTFS_TMPDIR": str(scratch),
            "XDG_RUNTIME_DIR": str(scratch),
            # On a host where KVM only seems to work, libguestfs would try it, and hang.
            **({} if self._uses_kvm else {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}),
        }

    def _owner(self) -> dict[str, Any]:
        """Whom the child is to become, once it has read what only we may read."""
        if os.geteuid() != 0:
            return {}
        groups = [KVM_DEVICE.stat().st_gid] if self._uses_kvm and KVM_DEVICE.exists() else []
        return {"user_id": _NOBODY, "groups": groups}


class _Child:
    """One run of ``guestfs_tools`` in a session of its own; nothing of it is left when ``answer`` returns."""

    def __init__(self, command: list[str], environment: Mapping[str, str], scratch: Path) -> None:
        self._answer = tempfile.TemporaryFile(dir=scratch.parent)  # noqa: SIM115 - closed by ``answer``
        self._words = tempfile.TemporaryFile(dir=scratch.parent)  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._answer, stderr=self._words, cwd="/", start_new_session=True,
            env=dict(environment),
        )  # fmt: skip

    @property
    def _input(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdin)

    def answer(self, job: Mapping[str, Any], seconds: float, what: str, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        try:
            try:
                has_ended = self._wait(json.dumps(job).encode() + b"\n", seconds, is_cancelled)
            finally:
                self._end()
            return _checked(self._answered(has_ended, seconds, what), what)
        finally:
            self._answer.close()
            self._words.close()

    def _answered(self, has_ended: bool, seconds: float, what: str) -> Any:
        if not has_ended:
            raise Permanent(
                f"{what}: libguestfs' appliance was not done after {seconds:.0f} s and was ended{self._said()}; is the host "
                "overloaded? guestfs.deadline_seconds in compute.yaml allows more",
                "ApplianceTimeout",
            )
        self._answer.seek(0)
        try:
            return json.loads(self._answer.read(_MOST_ANSWER_BYTES))
        except ValueError:
            code = self._process.returncode
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise Permanent(f"{what}: libguestfs {how}{self._said()}", "ApplianceFailed") from None

    def _wait(self, job: bytes, seconds: float, is_cancelled: Callable[[], bool]) -> bool:
        """Whether it has ended within *seconds*. Its input stays open meanwhile: the child ends with that."""
        ends_at = time.monotonic() + seconds
        fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with contextlib.suppress(BrokenPipeError):  # it ended at once
            self._input.write(job)
            self._input.flush()
        process = os.pidfd_open(self._process.pid)
        end = select.poll()
        end.register(process, select.POLLIN)
        try:
            while time.monotonic() < ends_at:
                if is_cancelled():
                    raise Cancelled("it is no longer wanted")
                if end.poll(_LOOK_EVERY_SECONDS * 1000):
                    return True  # and not reaped yet: its number, which is that of its group, is nobody else's until then
            return False
        finally:
            os.close(process)

    def _end(self) -> None:
        """End the child and all that it started; its QEMU may outlive it for a moment."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, on a disk that does not answer
            self._process.wait(timeout=10)

    def _said(self) -> str:
        """The last that it said, for messages."""
        size = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, size - 2000))
        lines = [line for line in self._words.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f": {shortened(escaped(lines[-1].strip()), _MOST_WORDS_CHARACTERS)}" if lines else ""


def _checked(answer: Any, what: str) -> dict[str, Any]:
    """What the child says it has found; it has seen what a stranger wrote, and is believed no more than that."""
    if not isinstance(answer, dict):
        raise Permanent(f"{what}: libguestfs gave no answer", "ApplianceFailed")
    if "failure" in answer:
        text = shortened(escaped(" ".join(str(answer["failure"]).split())), _MOST_WORDS_CHARACTERS)
        if text.startswith("guestfs_launch failed"):
            text = "libguestfs' appliance did not start, or crashed; libguestfs-test-tool (package libguestfs-tools) says more"
        if "No space left" in text:
            raise NoSpace(f"{what}: {text}; free space on the file system of paths.state_dir")
        raise Permanent(f"{what}: {text}", "CannotChange" if answer.get("is_refusal") else "ApplianceFailed")
    return answer


def _build_failure(what: str, told: str) -> Permanent | NoSpace:
    text = " ".join(told.split())
    if "failed to find a suitable kernel" in text:
        return Permanent(
            f"{what}: there is no kernel on this host that libguestfs' appliance could use: "
            "apt-get install linux-image-cloud-amd64, or set SUPERMIN_KERNEL and SUPERMIN_MODULES for ecompute",
            "NoApplianceKernel",
        )
    if "No space left" in text:
        return NoSpace(f"{what}: libguestfs' appliance takes 400 MB below paths.state_dir: free space there")
    said = shortened(escaped(text[-_MOST_WORDS_CHARACTERS:]), _MOST_WORDS_CHARACTERS)
    return Permanent(f"{what}: supermin cannot make libguestfs' appliance: {said}", "ApplianceFailed")


def _changed_at(*paths: Path | None) -> tuple[float, ...]:
    """When each of *paths* was changed last; nothing where one of them is not there."""
    try:
        return tuple(path.stat().st_mtime for path in paths if path)
    except OSError:
        return ()


def _parts() -> Path | None:
    return next((path for path in map(Path, SUPERMIN_D) if path.is_dir()), None)


def missing() -> str:
    """What is not on this host, in words; "" where nothing is."""
    parts = {
        "Python's bindings": importlib.util.find_spec("guestfs") or (DIST_PACKAGES / "guestfs.py").exists(),
        "supermin": shutil.which("supermin"),
        "libguestfs itself": _parts(),
    }
    return ", ".join(name for name, found in parts.items() if not found)


def has_kernel() -> bool:
    """Whether supermin finds a kernel with its modules on this host, or is told of one."""
    if "SUPERMIN_KERNEL" in os.environ:
        return os.access(os.environ["SUPERMIN_KERNEL"], os.R_OK)
    kernels = [path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*")]
    return any((Path("/lib/modules") / kernel).is_dir() for kernel in kernels)


def is_usable() -> bool:
    """Whether all that the appliance is made of is on this host."""
    return not missing() and has_kernel()


def check_installed(what: str) -> None:
    """Raises ``Permanent`` where libguestfs is not on this host."""
    if absent := missing():
        raise Permanent(f"{what}: libguestfs is not on this host ({absent} missing): {PACKAGES}", "NoGuestfs")
