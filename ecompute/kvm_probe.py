"""Whether guests can run under KVM on this host, proven by booting a kernel to user space.

An open ``/dev/kvm`` proves nothing: on some hosts, mostly nested ones, a virtual machine is made, its BIOS runs, and the
guest's kernel then hangs for ever. So ``virt_type: auto`` boots one of the host's own kernels with a first process of ours that
prints a token and powers off; ``ecompute/probe_initramfs.py`` makes that. The answer is remembered per boot of the host.
Called once by ``agent``; knows QEMU's command line, and nothing of libvirt or of instances.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import EcomputeError
from common.files import write_atomically
from common.retry import Deadline
from ecompute.identity import boot_id
from ecompute.probe_initramfs import TOKEN, probe_initramfs

logger = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
KERNELS = Path("/boot")
REMEMBERED = "kvm-probe.json"
MEMORY_MIB = 128
SLOWER = "guests run emulated, many times slower"


@dataclass(frozen=True)
class VirtTypeChoice:
    """What guests are run by, and why.

    Args:
        virt_type: "kvm", "qemu" or "test".
        proven: a kernel was seen to boot under KVM on this host since it was booted.
    """

    virt_type: str
    proven: bool
    reason: str


@dataclass(frozen=True)
class Boot:
    """How a probe ended."""

    reached_user_space: bool
    seconds: float
    last_words: str  # the last line that QEMU or the kernel said


def choose_virt_type(
    configured: str,
    run_dir: Path,
    *,
    deadline_seconds: float,
    device: Path = KVM_DEVICE,
    kernels: Path = KERNELS,
    probe: Callable[[Path, float], Boot] | None = None,
) -> VirtTypeChoice:
    """What to run guests by: *configured* itself, but for "auto", which means KVM where it is proven and else QEMU's emulation.

    Blocks for at most about *deadline_seconds*, and only once per boot of the host: the answer is kept in *run_dir*. A warning
    says why it is not KVM and what to do.

    Args:
        probe: boots the kernel at the path under KVM within so many seconds.
    """
    if configured != "auto":
        return VirtTypeChoice(configured, proven=False, reason="configured")
    kernel = newest_kernel(kernels)
    obstacle = _obstacle(device, kernel, kernels)
    if obstacle or kernel is None:
        return _warned(VirtTypeChoice("qemu", proven=False, reason=obstacle))
    remembered = run_dir / REMEMBERED
    key = {"boot_id": boot_id(), "qemu": _qemu_version(), "kernel": str(kernel)}
    choice = _recall(remembered, key)
    if choice is None:
        logger.info("booting %s under KVM to see whether it works here, for at most %g s", kernel, deadline_seconds)
        choice = _judge((probe or boot_under_kvm)(kernel, deadline_seconds), kernel, deadline_seconds)
        _remember(remembered, key, choice)
    return choice if choice.proven else _warned(choice)


def newest_kernel(directory: Path) -> Path | None:
    """The readable ``vmlinuz-…`` of the highest version in *directory*."""

    def version(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.\-_]+", path.name)]

    readable = [path for path in directory.glob("vmlinuz-*") if path.is_file() and os.access(path, os.R_OK)]
    return max(readable, key=version, default=None)


def boot_under_kvm(kernel: Path, deadline_seconds: float) -> Boot:
    return boot(kernel, ["-accel", "kvm", "-cpu", "host"], deadline_seconds)


def boot(kernel: Path, accelerator: Sequence[str], deadline_seconds: float) -> Boot:
    """Boot *kernel* with our first process under QEMU, and watch its serial line for the token. QEMU is gone on return."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="etcd-compute-probe-") as directory:
        initramfs = Path(directory) / "initramfs"
        initramfs.write_bytes(probe_initramfs())
        command = [
            # Ends QEMU even where this process is killed meanwhile: a hung guest would else take a CPU for ever.
            "timeout", "--signal=KILL", str(deadline_seconds + 5),
            QEMU, *accelerator, "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio",
            "-m", str(MEMORY_MIB), "-no-reboot", "-kernel", str(kernel), "-initrd", str(initramfs),
            "-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
        ]  # fmt: skip
        with _running(command) as serial_line:
            output, was_seen = _watch(serial_line, Deadline(deadline_seconds))
    return Boot(was_seen, time.monotonic() - began, _last_words(output))


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[int]:
    """A process in a group of its own, and the descriptor of what it says; the whole group is ended in the end."""
    reading, writing = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.STDOUT, start_new_session=True
            )
        finally:
            os.close(writing)
        try:
            yield reading
        finally:
            _end(process)
    finally:
        os.close(reading)


def _watch(serial_line: int, deadline: Deadline) -> tuple[bytes, bool]:
    """What came until the token, the end or the *deadline*, and whether the token was there."""
    output = bytearray()
    while select.select([serial_line], [], [], deadline.remaining())[0]:
        chunk = os.read(serial_line, 65536)
        output += chunk
        if TOKEN in output:
            return bytes(output), True
        if not chunk or deadline.expired:
            break
        del output[:-65536]
    return bytes(output), False


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        logger.warning("QEMU of the KVM probe (process %d) hangs in the host's kernel and cannot be ended", process.pid)


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line and line.encode() != TOKEN), "")


def _obstacle(device: Path, kernel: Path | None, kernels: Path) -> str:
    """Why KVM need not even be tried, and what to do; "" where it may work."""
    if platform.machine() != "x86_64":
        return (
            f"KVM can be proven on x86_64 only, this is {platform.machine()}; set libvirt.virt_type: kvm if you know it works"
        )
    if not device.exists():
        return (
            f"there is no {device}; enable virtualisation in the BIOS (or nesting in the host above), load kvm_intel or kvm_amd"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user; run ecompute as root, or add it to the group kvm"
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed; install qemu-system-x86"
    if kernel is None:
        return (
            f"no readable {kernels}/vmlinuz-* to prove KVM with; install a kernel package such as linux-image-cloud-amd64,"
            " or set libvirt.virt_type: kvm if you know it works"
        )
    return ""


def _judge(boot_: Boot, kernel: Path, deadline_seconds: float) -> VirtTypeChoice:
    if boot_.reached_user_space:
        return VirtTypeChoice("kvm", proven=True, reason=f"{kernel} reached user space under KVM in {boot_.seconds:.1f} s")
    if boot_.seconds >= deadline_seconds:
        how = f"did not reach user space within {deadline_seconds:g} s; the last that was heard of it: {boot_.last_words!r}"
    else:
        how = f"ended after {boot_.seconds:.1f} s: {boot_.last_words!r}"
    advice = "see to nesting in the host above or the BIOS, or set libvirt.virt_type: qemu to skip this test"
    return VirtTypeChoice("qemu", proven=False, reason=f"/dev/kvm is there but {kernel} {how}; {advice}")


def _warned(choice: VirtTypeChoice) -> VirtTypeChoice:
    logger.warning("no KVM, %s: %s", SLOWER, choice.reason)
    return choice


def _qemu_version() -> str:
    """The first line of QEMU's version; what it is does not matter, only that another QEMU has another."""
    try:
        answer = subprocess.run([QEMU, "-version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.partition("\n")[0]


def _recall(path: Path, key: dict[str, str]) -> VirtTypeChoice | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        choice = VirtTypeChoice(**found["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if found.get("key") == key else None


def _remember(path: Path, key: dict[str, str], choice: VirtTypeChoice) -> None:
    text = json.dumps({"key": key, "choice": asdict(choice)}, indent=2) + "\n"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(path, text.encode(), 0o644)
    except (EcomputeError, OSError) as error:
        logger.warning("the KVM probe's answer is not kept, so the next start probes again: %s", error)
