"""Disks of other hypervisors, made by QEMU's own tool: converted once, by a child that can do little, or refused."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import ImagesConfig
from common.errors import Cancelled, ImageInvalid, NoSpace
from common.model import ImageRef
from ecompute import image_conversion, images
from ecompute.images import CachedImage, ImageCache
from ecompute.qemu_img import cage as cage_of
from tests.support.disk_images import MIB, make_raw, qemu_img, qemu_img_info, sha256
from tests.support.processes import ROOT

# What qemu-img makes of a raw disk: format and options.
KINDS = {
    "vmdk": ("vmdk", ""),
    "vmdk-stream": ("vmdk", "subformat=streamOptimized"),
    "vhdx": ("vhdx", ""),
    "vhdx-fixed": ("vhdx", "subformat=fixed"),
    "vhd": ("vpc", "force_size=on"),
    "vhd-fixed": ("vpc", "subformat=fixed,force_size=on"),
    "vdi": ("vdi", ""),
    "vdi-static": ("vdi", "static=on"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "images", ImagesConfig())


def make(kind: str, path: Path, *, size_mib: int = 8) -> Path:
    raw = make_raw(path.with_suffix(".raw"), size_mib=size_mib)
    image_format, options = KINDS[kind]
    qemu_img("convert", "-f", "raw", "-O", image_format, *(["-o", options] if options else []), raw, path)
    return path


def fetch(cache: ImageCache, path: Path) -> CachedImage:
    return cache.fetch(ImageRef(str(path)), progress=lambda *_: None, is_cancelled=lambda: False)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "images").iterdir() if path.name != "index")


def refused(cache: ImageCache, tmp_path: Path, path: Path) -> str:
    with pytest.raises(ImageInvalid) as caught:
        fetch(cache, path)
    assert kept(tmp_path) == []
    return str(caught.value)


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@each_kind
def test_a_disk_of_another_hypervisor_becomes_a_qcow2_of_the_same_content(kind: str, cache: ImageCache, tmp_path: Path) -> None:
    source = make(kind, tmp_path / "a.img")
    found = fetch(cache, source)
    assert (found.format, found.virtual_size_bytes) == ("qcow2", 8 * MIB)
    assert sha256(found.path) == found.digest
    assert kept(tmp_path) == [found.path.name]
    assert found.path.stat().st_mode & 0o7777 == 0o644
    assert (found.path.stat().st_uid, found.path.stat().st_gid) == (os.geteuid(), os.getegid())
    assert "Images are identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", source.with_suffix(".raw"), found.path)
    assert "backing-filename" not in qemu_img_info(found.path)
    assert cache.is_cached(ImageRef("http://127.0.0.1:1/elsewhere", f"sha256:{sha256(source)}")) == found


def test_the_same_disk_is_converted_once(cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make("vmdk", tmp_path / "a.img")
    found = fetch(cache, source)
    monkeypatch.setattr(image_conversion, "convert", None)
    (tmp_path / "b.img").write_bytes(source.read_bytes())
    assert fetch(cache, tmp_path / "b.img") == found


def test_a_vmdk_in_several_files_is_refused(cache: ImageCache, tmp_path: Path) -> None:
    make_raw(tmp_path / "a.raw")
    for kind in ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", tmp_path / "a.raw", tmp_path / f"{kind}.vmdk")
        assert "several files" in refused(cache, tmp_path, tmp_path / f"{kind}.vmdk")
    assert "several files" in refused(cache, tmp_path, tmp_path / "twoGbMaxExtentSparse-s001.vmdk")


def test_a_vmdk_that_leads_to_a_file_of_the_host_is_refused_before_qemu_sees_it(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    make("vmdk", tmp_path / "base.vmdk")
    qemu_img("create", "-q", "-f", "vmdk", "-b", tmp_path / "base.vmdk", "-F", "vmdk", tmp_path / "child.vmdk")
    monkeypatch.setattr(image_conversion, "_run", None)
    assert "rests on another disk" in refused(cache, tmp_path, tmp_path / "child.vmdk")
    whole = make("vmdk", tmp_path / "a.vmdk").read_bytes()
    evil = f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 16384 FLAT "{tmp_path}/secret" 0\n'.encode()
    cases = {
        "no capacity": patched_copy(tmp_path, whole, (16, bytes(8)), (512, evil)),
        "no descriptor": patched_copy(tmp_path, whole, (28, bytes(8))),
        "flat": patched_copy(tmp_path, whole, (512, evil)),
        "two kinds": patched_copy(tmp_path, whole, (700, b'\ncreateType="monolithicFlat"\n')),
        "behind the end": patched_copy(tmp_path, whole, (28, struct.pack("<Q", 1 << 50))),
        "short": patched_copy(tmp_path, whole[:30]),
    }
    for what, path in cases.items():
        assert "VMDK" in refused(cache, tmp_path, path), what


def patched_copy(tmp_path: Path, content: bytes, *edits: tuple[int, bytes]) -> Path:
    path = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}.vmdk"
    path.write_bytes(content)
    for offset, data in edits:
        patched(path, offset, data)
    return path


def test_a_vhd_that_rests_on_another_is_refused(cache: ImageCache, tmp_path: Path) -> None:
    path = make("vhd", tmp_path / "a.vhd")
    patched(path, 60, struct.pack(">I", 4))
    assert "rests on another disk" in refused(cache, tmp_path, path)


@pytest.mark.parametrize("kind", ["vmdk", "vmdk-stream", "vhdx", "vhdx-fixed", "vhd", "vdi", "vdi-static"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_a_disk_that_was_cut_off_is_refused_where_anything_is_missing(
    kind: str, share: float, cache: ImageCache, tmp_path: Path
) -> None:
    path = make(kind, tmp_path / "a.img")
    os.truncate(path, int(path.stat().st_size * share) // 512 * 512)
    try:
        found = fetch(cache, path)
    except ImageInvalid as error:
        assert str(error).startswith("image ")
        assert len(str(error).splitlines()) == 1
        assert kept(tmp_path) == []
        return
    assert (kind, share) == ("vmdk-stream", 0.9)  # what was cut off there is a marker of the end
    assert "Images are identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", path.with_suffix(".raw"), found.path)


@each_kind
def test_a_disk_that_is_too_large_is_refused_before_it_is_converted(
    kind: str, cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(kind, tmp_path / "a.img", size_mib=32)
    monkeypatch.setattr(images, "_GIB", MIB // 4)  # 25 MiB; the fixed kinds are larger than that as files
    with pytest.raises(ImageInvalid) as caught:
        fetch(cache, path)
    assert caught.value.reason == "ImageTooLarge"
    assert kept(tmp_path) == []


def test_a_conversion_that_nobody_waits_for_or_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("vmdk", tmp_path / "a.vmdk")
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)

    def nobody_waits() -> None:
        raise Cancelled("nobody")

    def convert(report: object) -> None:
        image_conversion.convert(path, target, "vmdk", what="image x", most_bytes=1 << 40, report=report)  # type: ignore[arg-type]

    try:
        with pytest.raises(Cancelled):
            convert(nobody_waits)
        monkeypatch.setattr(image_conversion, "_INFO_SECONDS", 0)
        with pytest.raises(ImageInvalid, match="within 0 s"):
            convert(lambda: None)
    finally:
        os.close(target)
    assert not list_children()


def list_children() -> list[str]:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [child for child in children if "qemu-img" in Path(f"/proc/{child}/cmdline").read_text()]


def test_room_that_runs_out_on_the_way_leaves_nothing(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("vdi", tmp_path / "a.vdi")
    monkeypatch.setattr("ecompute.qemu_img.cage", lambda *_: ["sh", "-c", 'echo "No space left on device"; exit 1'])
    with pytest.raises(NoSpace, match="free space"):
        fetch(cache, path)
    assert kept(tmp_path) == []


PRINT_CAGE = (
    "grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs):' /proc/self/status; ulimit -t; ulimit -v; ulimit -c; ls /proc/self/fd"
)


def test_the_child_is_nobody_and_bounded(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    cage = cage_of(60, MIB)
    told = subprocess.run([*cage, "bash", "-c", PRINT_CAGE], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "Uid:\t65534\t65534\t65534\t65534" in told
    assert "Gid:\t65534" in told
    assert "CapEff:\t0000000000000000" in told
    assert "NoNewPrivs:\t1" in told
    assert "\n60\n2097152\n0\n" in told


CONVERT = """
import sys
from pathlib import Path
from common.config import ImagesConfig
from common.model import ImageRef
from ecompute.images import ImageCache
cache = ImageCache(Path(sys.argv[1]), ImagesConfig())
print(cache.fetch(ImageRef(sys.argv[2]), progress=lambda *_: None, is_cancelled=lambda: False).digest)
"""
UNIT = (ROOT / "packaging/systemd/ecompute.service").read_text()


def convert_with(capabilities: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    source = make("vmdk", tmp_path / "a.vmdk")
    return subprocess.run(
        ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{capabilities}", sys.executable, "-c", CONVERT,
         str(tmp_path / "images"), str(source)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give capabilities away")
def test_what_the_unit_leaves_of_root_is_enough(tmp_path: Path) -> None:
    (line,) = [line for line in UNIT.splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = line.partition("=")[2].lower().replace("cap_", "+").replace(" ", ",")
    done = convert_with(names, tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path) == [f"{done.stdout.strip()}.qcow2"]
    (tmp_path / "other").mkdir()
    without = convert_with("+dac_override", tmp_path / "other")
    assert "CAP_CHOWN" in without.stderr


DYING = """
import os, signal, sys
from pathlib import Path
from common.config import ImagesConfig
from common.model import ImageRef
from ecompute import image_conversion, images, qemu_img
point, directory, image = sys.argv[1:]
module, name, when = point.split(":")
owner = {"images": images, "cache": images.ImageCache, "conversion": image_conversion, "child": qemu_img, "path": Path}[module]
original = getattr(owner, name)
def die(*arguments, **named):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = original(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, die)
cache = images.ImageCache(Path(directory), ImagesConfig())
cache.fetch(ImageRef(image), progress=lambda *_: None, is_cancelled=lambda: False)
"""
POINTS = [
    f"{name}:{when}"
    for name in (
        "images:_write_sparsely", "conversion:check", "conversion:_virtual_size", "conversion:convert", "images:_sha256",
        "cache:_keep", "path:rename", "cache:_write_entry", "images:fsync_directory",
    )
    for when in ("before", "after")
] + ["child:_wait:before"]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_whoever_is_killed_on_the_way_leaves_no_image_that_is_not_whole(point: str, tmp_path: Path) -> None:
    path = make("vmdk", tmp_path / "a.vmdk")
    path.write_bytes(gzip.compress(path.read_bytes()))  # so that all of it is in the way: fetch, unpack, convert
    command = [sys.executable, "-c", DYING, point, str(tmp_path / "images"), str(path)]
    died = subprocess.run(command, cwd=ROOT, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert_every_image_is_whole(tmp_path)
    cache = ImageCache(tmp_path / "images", ImagesConfig())
    assert not [name for name in kept(tmp_path) if name.endswith(".partial")]
    found = fetch(cache, path)
    assert qemu_img("compare", "-f", "raw", "-F", "qcow2", path.with_suffix(".raw"), found.path)
    assert_every_image_is_whole(tmp_path)
    assert kept(tmp_path) == [found.path.name]


def assert_every_image_is_whole(tmp_path: Path) -> None:
    for path in (tmp_path / "images").glob("*.*"):
        if not path.name.endswith(".partial"):
            assert sha256(path) == path.stem


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    edits=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=16)), max_size=6),
    length=st.one_of(st.none(), st.integers(0, 100_000)),
)
def test_a_mutated_header_is_probed_without_a_crash(
    kind: str, edits: list[tuple[int, bytes]], length: int | None, tmp_path: Path
) -> None:
    original = tmp_path / f"{kind}.img"
    if not original.exists():
        make(kind, original)
    content = bytearray(original.read_bytes()[:length])
    for offset, data in edits:
        content[offset : offset + len(data)] = data
    (tmp_path / "mutated").write_bytes(content)
    with opened(tmp_path / "mutated") as descriptor:
        found = image_conversion.format_of(descriptor)
        if found:
            try:
                image_conversion.check(descriptor, found, "image x")
            except ImageInvalid as error:
                assert str(error).startswith("image x ")
