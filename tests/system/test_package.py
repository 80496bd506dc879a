"""The Debian packages: built by one command, installed on a clean Debian 12, removed and purged without a trace.

The root is what debootstrap would make, with what the packages depend on; it is kept in .cache, as apt needs a minute for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.timeout(1500)

# ecompute's: 2.8, and 0.6 for becoming nobody, as whom qemu-img reads the disks of strangers.
UNITS = {"ecompute.service": 3.4, "md-server.service": 1.6, "etcd-compute-placement.service": 1.4}
"""Exposure by ``systemd-analyze security``, at most: 0 is least, 10 is none at all."""
PACKAGES = ("etcd-compute", "etcd-compute-placement")
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")


def dependencies(deb: Path) -> set[str]:
    fields = subprocess.run(["dpkg-deb", "-f", deb, "Depends"], check=True, capture_output=True, text=True).stdout
    return {re.split(r"[ (|]", part.strip())[0] for part in fields.split(",")}


def clean_root(debs: list[Path]) -> Path:
    """A tar of Debian 12 with all that *debs* depend on."""
    packages = sorted({"ca-certificates", "systemd"}.union(*map(dependencies, debs)))
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    tar = ROOT / ".cache" / "debian-root" / f"bookworm-{name}.tar"
    if not tar.exists():
        tar.parent.mkdir(parents=True, exist_ok=True)
        partial = tar.with_name(f"partial-{os.getpid()}.tar")
        sources = [str(SOURCES)] if SOURCES.exists() else []
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(packages)}",
            "bookworm",
            partial,
            *sources,
        ]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
        assert made.returncode == 0, made.stderr
        partial.rename(tar)
    return tar


class Machine:
    """A root that commands run in."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        # A mount namespace of its own: what is mounted goes with the command.
        script = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"'
        entered = ["unshare", "--mount", "--pid", "--net", "--fork", "sh", "-c", script, self.root, *command]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
            "HOME": "/tmp",
        }
        done = subprocess.run(entered, check=False, capture_output=True, text=True, timeout=300, env=environment)
        assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def files(self) -> dict[str, str]:
        """Every file that is not a log or a cache of the system's own, with what it is."""
        found = {}
        skipped = {"proc", "dev", "sys", "tmp", "var/log", "var/cache", "var/lib/dpkg", "var/lib/apt", "run/systemd"}
        for folder, folders, names in os.walk(self.root):
            inside = Path(folder).relative_to(self.root)
            folders[:] = [name for name in folders if str(inside / name) not in skipped and name != "__pycache__"]
            for name in [*folders, *names]:
                status = (Path(folder) / name).lstat()
                found[str(inside / name)] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
        return found


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    target = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [ROOT / "packaging" / "build-deb.sh", target], check=False, capture_output=True, text=True, timeout=900
    )
    assert built.returncode == 0, built.stderr
    found = [Path(line) for line in built.stdout.split()]
    assert [deb.name.partition("_")[0] for deb in found] == list(PACKAGES)
    return found


@pytest.fixture(scope="module")
def machine(debs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With nothing of ours on it yet."""
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["tar", "-xf", clean_root(debs), "-C", root, "--exclude=./dev/*"], check=True, timeout=120)
    for deb in debs:
        shutil.copy(deb, root / "tmp" / deb.name)
    yield Machine(root)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, str]:
    return machine.files()


@pytest.fixture(scope="module")
def installed(machine: Machine, before: dict[str, str], debs: list[Path]) -> Machine:
    machine.run("dpkg", "-i", *[f"/tmp/{deb.name}" for deb in debs])
    return machine


def test_the_programs_run_with_nothing_else_installed(installed):
    assert "etcd.endpoints = [http://127.0.0.1:2379]" in installed.run("ecompute", "--check-config").stdout
    assert "usage: eschedule" in installed.run("eschedule", "--help").stdout
    assert installed.run("md-server", "--check-config").stdout == "configuration is valid\n"
    # What each imports when it really works
    for program, module in (("ecompute", "ecompute.agent"), ("eschedule", "eschedule.wiring"), ("md-server", "md_server.main")):
        script = f"import runpy; runpy.run_path('/usr/bin/{program}', run_name='looked-at'); import {module}, sys; print(sys.path[0])"
        assert installed.run("python3", "-sP", "-c", script).stdout == "/usr/lib/etcd-compute\n"


def test_the_manual_and_completion_are_in_the_package(debs):
    told = subprocess.run(["dpkg-deb", "--contents", debs[0]], check=True, capture_output=True, text=True, timeout=60).stdout
    files = {line.split()[-1].removeprefix("./") for line in told.splitlines()}
    pages = {f"usr/share/man/man1/eschedule{verb}.1.gz" for verb in ("", "-create", "-destroy", "-host", "-volume")}
    pages |= {"usr/share/man/man8/ecompute.8.gz", "usr/share/man/man8/md-server.8.gz"}
    assert pages <= files
    shells = {"usr/share/bash-completion/completions/eschedule", "usr/share/fish/vendor_completions.d/eschedule.fish"}
    assert shells <= files


def test_the_sample_is_valid_and_wants_the_unit_of_md_server(installed):
    sample = "/usr/share/doc/etcd-compute/examples/compute.yaml"
    assert "metadata.mode = external" in installed.run("ecompute", "--config", sample, "--check-config").stdout
    assert installed.run("md-server", "--config", sample, "--check-external").returncode == 0
    assert not (installed.root / "etc/etcd-compute/compute.yaml").exists(), "no unit starts before somebody has configured it"


def test_placement_makes_its_database_and_has_its_servers(installed):
    home = "/usr/lib/etcd-compute-placement"
    for program in ("gunicorn", "placement-manage", "waitress-serve"):
        assert "usage" in installed.run(f"{home}/bin/{program}", "--help", check=False).stdout.lower()
    database = ["env", "OS_PLACEMENT_DATABASE__CONNECTION=sqlite:////tmp/placement.db"]
    installed.run(*database, f"{home}/bin/placement-manage", "db", "sync")
    assert (installed.root / "tmp/placement.db").stat().st_size > 100_000
    env = installed.root / "etc/etcd-compute/placement.env"
    group = installed.run("getent", "group", "etcd-compute-placement").stdout.split(":")[2]
    assert (env.stat().st_mode & 0o777, env.stat().st_gid) == (0o640, int(group))


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_valid_and_touch_little(installed, unit):
    path = f"/lib/systemd/system/{unit}"
    verified = installed.run("systemd-analyze", "verify", "--man=no", path, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    judged = installed.run("systemd-analyze", "security", "--offline=true", "--no-pager", path).stdout
    exposure = re.search(r"Overall exposure level for \S+: (\d+\.\d)", judged)
    assert exposure, judged
    assert float(exposure[1]) <= UNITS[unit], judged


def test_folders_let_md_server_read_and_nobody_else(installed):
    uid = int(installed.run("id", "-u", "etcd-compute-md").stdout)
    gid = int(installed.run("id", "-g", "etcd-compute-md").stdout)
    modes = {
        "run/etcd-compute": (0o2755, 0, gid), "run/etcd-compute/md": (0o750, uid, gid),
        "var/lib/etcd-compute": (0o711, 0, 0), "var/lib/etcd-compute/metadata": (0o2750, 0, gid),
        "var/lib/etcd-compute/metadata/by-address": (0o2750, 0, gid), "var/lib/etcd-compute/metadata/reports": (0o750, uid, gid),
    }  # fmt: skip
    for path, expected in modes.items():
        status = (installed.root / path).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == expected, path


def test_installing_again_changes_nothing_and_keeps_the_configuration(installed, debs):
    (installed.root / "etc/etcd-compute/compute.yaml").write_text("name: mine\n")
    (installed.root / "etc/etcd-compute/placement.env").write_text("PORT=9999\n")
    found = installed.files()
    installed.run("dpkg", "-i", *[f"/tmp/{deb.name}" for deb in debs])
    assert installed.files() == found
    assert (installed.root / "etc/etcd-compute/compute.yaml").read_text() == "name: mine\n"
    assert (installed.root / "etc/etcd-compute/placement.env").read_text() == "PORT=9999\n"


def test_purging_keeps_the_disks_of_guests_and_says_so_and_else_leaves_nothing(installed, before):
    disk = installed.root / "var/lib/etcd-compute/instances/11111111-1111-4111-8111-111111111111/disk.qcow2"
    disk.parent.mkdir(parents=True)
    disk.write_text("somebody's data")
    said = installed.run("dpkg", "--purge", *PACKAGES).stderr
    assert disk.read_text() == "somebody's data"
    assert "guests' disks are kept in /var/lib/etcd-compute" in said
    shutil.rmtree(installed.root / "var/lib/etcd-compute")
    left = {path: what for path, what in installed.files().items() if before.get(path) != what}
    accounts = {f"etc/{name}{suffix}" for name in ("passwd", "group", "shadow", "gshadow") for suffix in ("", "-")}
    assert set(left) - accounts - {"etc/.pwd.lock"} == set()
    assert "etcd-compute" not in (installed.root / "etc/passwd").read_text() + (installed.root / "etc/group").read_text()
