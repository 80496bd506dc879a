"""Python in a kernel of its own: a script that is the first process of a QEMU, for what the machine's own kernel cannot do.

It boots Debian's cloud kernel, the one of the small guest image, with the modules that are asked for, this interpreter and the
programs that the script wants to run. No disk, no network; what the script prints is what comes back.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.processes import ROOT

BOOT_SECONDS = 120  # it takes six when the machine has nothing else to do
STDLIB_PACKAGES = ("collections", "ctypes", "encodings", "importlib", "json", "logging", "re", "urllib", "lib-dynload")
# The first process: it readies what every script needs, and never ends but by switching the machine off.
PREFACE = """\
import ctypes, os, sys, traceback
libc = ctypes.CDLL(None, use_errno=True)
for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"devtmpfs", b"/dev")):
    libc.mount(kind, where, kind, 0, None)
for module in %(modules)r:
    descriptor = os.open(module, os.O_RDONLY)
    assert libc.syscall(313, descriptor, b"", 0) == 0, module  # finit_module
sys.path.insert(0, "/app")
print("--- it begins")
try:
    exec(open("/script.py").read(), {"__name__": "__main__"})
except BaseException:
    traceback.print_exc(file=sys.stdout)
print("--- it ends", flush=True)
libc.reboot(0x4321FEDC)
"""


def run_in_kernel(
    script: str, work: Path, *, modules: Sequence[str] = (), programs: Sequence[str] = (), packages: Sequence[str] = ()
) -> str:
    """What *script* prints.

    Args:
        modules: the kernel's, in the order of loading.
        programs: by name, found on PATH here; they are in ``/bin`` there.
        packages: of ours, which it may import.
    """
    image = subprocess.run(
        [ROOT / "packaging" / "build-tiny-image.sh"], check=True, capture_output=True, text=True, timeout=180
    )
    folder = Path(image.stdout.split()[-1]).parent
    loaded = [f"/{name}.ko" for name in modules]
    files: dict[str, bytes] = {name: next((folder / "modules").rglob(name[1:])).read_bytes() for name in loaded}
    for binary, inside in ((sys.executable, "python"), *((shutil.which(name) or name, name) for name in programs)):
        files |= {f"/bin/{inside}": Path(binary).resolve().read_bytes(), **dict(_libraries(Path(binary).resolve()))}
    files |= dict(_standard_library())
    for package in packages:
        files |= {f"/app/{path.relative_to(ROOT)}": path.read_bytes() for path in (ROOT / package).rglob("*.py")}
    files["/script.py"] = script.encode()
    files["/first.py"] = (PREFACE % {"modules": loaded}).encode()
    files["/init"] = b"#!/bin/python -S\nexec(open('/first.py').read())\n"
    initramfs = work / "initramfs"
    initramfs.write_bytes(gzip.compress(b"".join(_archive(files)), 1))
    append = "console=ttyS0 quiet panic=-1 PYTHONHASHSEED=0 PYTHONHOME=" + sys.base_prefix  # the latter are its environment
    qemu = [
        "qemu-system-x86_64",
        "-m",
        "768",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
        "-kernel",
        folder / "vmlinuz",
        "-initrd",
        initramfs,
    ]
    ran = subprocess.run(
        [*qemu, "-append", append],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=BOOT_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    said = re.search(r"--- it begins\r?\n(.*)--- it ends", ran.stdout, re.DOTALL)
    assert said, ran.stdout[-4000:]
    return said[1].replace("\r", "")


def _standard_library() -> Iterator[tuple[str, bytes]]:
    folder = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    found = [
        *folder.glob("*.py"),
        *(path for name in STDLIB_PACKAGES for path in (folder / name).rglob("*") if path.suffix in (".py", ".so")),
    ]
    for path in found:
        yield str(path), path.read_bytes()
        if path.suffix == ".so":
            yield from _libraries(path)


def _libraries(binary: Path) -> Iterator[tuple[str, bytes]]:
    linked = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True, timeout=20).stdout
    for name in re.findall(r"(/\S+)", linked):
        if Path(name).is_file():
            yield name, Path(name).read_bytes()


def _archive(files: dict[str, bytes]) -> Iterator[bytes]:
    """*files*, with their folders, as the kernel takes them (cpio, "newc")."""
    folders = {str(parent) for name in files for parent in Path(name).parents} | {"/proc", "/sys", "/dev"}
    for name in sorted(folders - {"/"}):
        yield _entry(name, 0o40755, b"")
    for name, content in files.items():
        yield _entry(name, 0o100755, content)
    yield _entry("/TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    text = name[1:].encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + text
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
