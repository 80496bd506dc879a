"""ecompute/kvm_probe.py: what "auto" means, and the probe itself with a real QEMU and a real kernel."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from ecompute import kvm_probe
from ecompute.kvm_probe import Boot, boot, choose_virt_type, newest_kernel
from ecompute.probe_initramfs import TOKEN, probe_init
from tests.support.domains import a_kernel
from tests.support.hosts import children_of

PROVEN = Boot(True, 0.6, "reboot: Power down")
HUNG = Boot(False, 20.0, "Probing EDD (edd=off to disable)... ok")
REFUSED = Boot(False, 0.1, "qemu-system-x86_64: error: failed to set MSR 0x10a")


@pytest.fixture(scope="module")
def kernel() -> Path:
    return a_kernel()


class Probe:
    """Answers as told, and counts."""

    def __init__(self, answer: Boot) -> None:
        self.answer, self.kernels = answer, list[Path]()

    def __call__(self, kernel: Path, deadline_seconds: float) -> Boot:
        self.kernels.append(kernel)
        return self.answer


@pytest.fixture
def host(tmp_path: Path) -> dict[str, Path]:
    """A host that has all that KVM could need, as arguments."""
    (tmp_path / "kvm").touch()
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "vmlinuz-6.1.0-9-amd64").touch()
    return {"run_dir": tmp_path / "run", "device": tmp_path / "kvm", "kernels": tmp_path / "boot"}


@pytest.mark.parametrize("configured", ["kvm", "qemu", "test"])
def test_what_is_configured_is_not_questioned(host: dict[str, Path], configured: str) -> None:
    probe = Probe(HUNG)
    choice = choose_virt_type(configured, **host, deadline_seconds=20, probe=probe)
    assert (choice.virt_type, choice.proven, probe.kernels) == (configured, False, [])


def test_auto_is_kvm_where_a_kernel_reached_user_space(host: dict[str, Path]) -> None:
    choice = choose_virt_type("auto", **host, deadline_seconds=20, probe=Probe(PROVEN))
    assert (choice.virt_type, choice.proven) == ("kvm", True)


@pytest.mark.parametrize(("answer", "says"), [(HUNG, "within 20 s"), (REFUSED, "failed to set MSR")])
def test_auto_is_qemu_with_a_warning_where_the_kernel_did_not(
    host: dict[str, Path], answer: Boot, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # remembered or not, each start says so
        caplog.clear()
        choice = choose_virt_type("auto", **host, deadline_seconds=20, probe=Probe(answer))
        assert (choice.virt_type, choice.proven) == ("qemu", False)
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert says in warning.getMessage()
        assert "virt_type: qemu" in warning.getMessage()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda host: host["device"].unlink(), "BIOS"),
        (lambda host: (host["kernels"] / "vmlinuz-6.1.0-9-amd64").unlink(), "install a kernel"),
    ],
)
def test_auto_is_qemu_without_a_probe_where_something_is_missing(
    host: dict[str, Path], prepare: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(host)  # type: ignore[operator]
    probe = Probe(PROVEN)
    choice = choose_virt_type("auto", **host, deadline_seconds=20, probe=probe)
    assert (choice.virt_type, choice.proven, probe.kernels) == ("qemu", False, [])
    assert says in caplog.text
    assert not host["run_dir"].exists()  # what is missing may be there at the next start


def test_auto_is_qemu_where_there_is_no_qemu_to_probe_with(
    host: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(host["kernels"]))
    assert choose_virt_type("auto", **host, deadline_seconds=20, probe=Probe(PROVEN)).virt_type == "qemu"
    assert "install qemu-system-x86" in caplog.text


def test_the_answer_is_remembered_for_this_boot_and_this_kernel(host: dict[str, Path]) -> None:
    probe = Probe(PROVEN)
    first, second = (choose_virt_type("auto", **host, deadline_seconds=20, probe=probe) for _ in range(2))
    assert first == second
    assert len(probe.kernels) == 1
    remembered = host["run_dir"] / kvm_probe.REMEMBERED
    assert stat.S_IMODE(remembered.stat().st_mode) == 0o644

    newer = host["kernels"] / "vmlinuz-6.1.0-10-amd64"
    newer.touch()
    choose_virt_type("auto", **host, deadline_seconds=20, probe=probe)
    assert probe.kernels[1:] == [newer]

    content = json.loads(remembered.read_text())
    content["key"]["boot_id"] = "an earlier boot"
    remembered.write_text(json.dumps(content))
    choose_virt_type("auto", **host, deadline_seconds=20, probe=probe)
    assert len(probe.kernels) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"choice": {"virt_type": "kvm"}}', '{"choice": null, "key": null}'])
def test_a_damaged_memory_is_no_answer(host: dict[str, Path], content: str) -> None:
    host["run_dir"].mkdir()
    (host["run_dir"] / kvm_probe.REMEMBERED).write_text(content)
    probe = Probe(REFUSED)
    assert choose_virt_type("auto", **host, deadline_seconds=20, probe=probe).virt_type == "qemu"
    assert len(probe.kernels) == 1


def test_the_newest_kernel_is_the_one_of_the_highest_version(tmp_path: Path) -> None:
    assert newest_kernel(tmp_path) is None
    for version in ("6.1.0-9-amd64", "6.1.0-10-amd64", "5.10.0-30-amd64", "6.1.0-10-cloud-amd64", "0-rescue-0123456789abcdef"):
        (tmp_path / f"vmlinuz-{version}").touch()
    (tmp_path / "vmlinuz-9-directory").mkdir()
    newest = newest_kernel(tmp_path)
    assert newest is not None
    assert newest.name == "vmlinuz-6.1.0-10-cloud-amd64"


def test_the_first_process_says_its_token_on_any_linux(tmp_path: Path) -> None:
    # Outside a virtual machine, and without the right to switch the machine off: it prints, is refused, and turns in its loop.
    init = tmp_path / "init"
    init.write_bytes(probe_init())
    init.chmod(0o755)
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups", "--no-new-privs", init]
    with (tmp_path / "output").open("wb") as output:
        tmp_path.chmod(0o755)
        process = subprocess.Popen(["timeout", "--signal=KILL", "0.3", *command], stdout=output, stderr=subprocess.STDOUT)
        process.wait(10)
    assert (tmp_path / "output").read_bytes() == TOKEN + b"\n"


def test_a_kernel_is_seen_to_reach_user_space(kernel: Path) -> None:
    outcome = boot(kernel, ["-accel", "tcg", "-cpu", "max"], 60)
    assert outcome.reached_user_space, outcome


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_guest_that_hangs_is_given_up_at_the_deadline_and_nothing_is_left(kernel: Path) -> None:
    descriptors, children, began = open_descriptors(), children_of(os.getpid()), time.monotonic()
    outcome = boot(kernel, ["-accel", "tcg", "-S"], 1.0)  # -S: the CPU waits for a word that nobody gives
    assert not outcome.reached_user_space
    assert 1.0 <= time.monotonic() - began < 5.0
    assert open_descriptors() == descriptors
    assert children_of(os.getpid()) == children


def test_a_qemu_that_dies_says_why(kernel: Path) -> None:
    outcome = boot(kernel, ["-accel", "no-such-accelerator"], 20)
    assert not outcome.reached_user_space
    assert outcome.seconds < 10
    assert "no-such-accelerator" in outcome.last_words


def test_this_host_gets_an_answer_that_holds(kernel: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    choice = choose_virt_type("auto", tmp_path, deadline_seconds=8, kernels=kernel.parent)
    assert time.monotonic() - began < 20
    assert choice.virt_type == ("kvm" if choice.proven else "qemu")
    began = time.monotonic()
    assert choose_virt_type("auto", tmp_path, deadline_seconds=8, kernels=kernel.parent) == choice
    assert time.monotonic() - began < 2
