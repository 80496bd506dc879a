"""The image cache over local files: each content once, whole or not at all, and nothing asked twice."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common import files
from common.config import ImagesConfig
from common.errors import Cancelled, ChecksumMismatch, ImageInvalid, ImageNotFound, ImageUnavailable, InvalidSpec, NoSpace
from common.model import ImageRef
from ecompute import image_sources, images
from ecompute.image_flight import Flight
from ecompute.images import CachedImage, ImageCache
from tests.support.disk_images import MIB, make_qcow2, make_raw, sha256
from tests.support.packing import zstd
from tests.support.processes import ROOT, wait_until


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "images", ImagesConfig())


def ignore(done: int, total: int) -> None:
    pass


def fetch(cache: ImageCache, image: ImageRef | Path) -> CachedImage:
    ref = image if isinstance(image, ImageRef) else ImageRef(str(image))
    return cache.fetch(ref, progress=ignore, is_cancelled=lambda: False)


def kept(tmp_path: Path) -> list[str]:
    """Every file in the cache but the index."""
    return sorted(path.name for path in (tmp_path / "images").iterdir() if path.name != "index")


def test_an_image_is_kept_under_its_digest_and_format_for_others_to_read(cache: ImageCache, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        found = fetch(cache, make_qcow2(tmp_path / "a.img", size_mib=7))
    finally:
        os.umask(before)
    assert found == CachedImage(
        tmp_path / "images" / f"{sha256(tmp_path / 'a.img')}.qcow2", "qcow2", 7 * MIB, sha256(tmp_path / "a.img")
    )
    assert found.path.read_bytes() == (tmp_path / "a.img").read_bytes()
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o644
    assert stat.S_IMODE(found.path.parent.stat().st_mode) == 0o711
    assert stat.S_IMODE((found.path.parent / "index").stat().st_mode) == 0o700
    assert kept(tmp_path) == [found.path.name]


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_local_image_is_found_again_without_reading_it(
    form: str, cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageRef(form.format(make_raw(tmp_path / "a.img")))
    assert cache.is_cached(image) is None
    found = fetch(cache, image)
    monkeypatch.setattr(ImageCache, "_join", None)  # any further fetch would fail
    assert cache.is_cached(image) == found == fetch(cache, image)
    assert found.format == "raw"
    assert ImageCache(tmp_path / "images", ImagesConfig()).is_cached(image) == found


def test_a_path_with_escapes_in_its_address_is_found(cache: ImageCache, tmp_path: Path) -> None:
    make_raw(tmp_path / "my image")
    assert fetch(cache, ImageRef(f"file://{tmp_path}/my%20image")).format == "raw"


def test_a_changed_file_is_fetched_anew_and_the_old_image_stays_for_its_guests(cache: ImageCache, tmp_path: Path) -> None:
    image = ImageRef(str(make_qcow2(tmp_path / "a.img", pattern=1)))
    old = fetch(cache, image)
    (tmp_path / "a.img").unlink()
    make_qcow2(tmp_path / "a.img", pattern=2)
    assert cache.is_cached(image) is None
    new = fetch(cache, image)
    assert new.digest != old.digest
    assert kept(tmp_path) == sorted([old.path.name, new.path.name])


def test_the_same_bytes_from_two_places_are_kept_once(cache: ImageCache, tmp_path: Path) -> None:
    make_qcow2(tmp_path / "a.img")
    shutil.copy(tmp_path / "a.img", tmp_path / "b.img")
    first = fetch(cache, tmp_path / "a.img")
    inode = first.path.stat().st_ino
    assert fetch(cache, tmp_path / "b.img") == first
    assert first.path.stat().st_ino == inode
    assert kept(tmp_path) == [first.path.name]


def test_the_cache_is_not_the_users_file(cache: ImageCache, tmp_path: Path) -> None:
    found = fetch(cache, make_raw(tmp_path / "a.img"))
    with (tmp_path / "a.img").open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"changed")
    assert sha256(found.path) == found.digest


def test_a_raw_image_stays_as_sparse_as_it_was(cache: ImageCache, tmp_path: Path) -> None:
    found = fetch(cache, make_raw(tmp_path / "a.img", size_mib=64))
    assert found.path.stat().st_size == 64 * MIB
    assert found.path.stat().st_blocks * 512 < 3 * MIB
    assert sha256(found.path) == found.digest == sha256(tmp_path / "a.img")


def test_a_file_without_reflinks_is_copied_and_cloning_is_tried_first(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def clone(target: int, request: int, source: int) -> None:
        asked.append(request)
        os.write(target, os.pread(source, 64 * MIB, 0))

    monkeypatch.setattr(image_sources.fcntl, "ioctl", clone)
    monkeypatch.setattr(images, "_write_sparsely", None)  # what was cloned must not be written again
    found = fetch(cache, make_raw(tmp_path / "a.img"))
    assert asked == [0x40049409]
    assert sha256(found.path) == found.digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_checksum_is_held_against_the_bytes(algorithm: str, cache: ImageCache, tmp_path: Path) -> None:
    make_qcow2(tmp_path / "a.img")
    digits = hashlib.new(algorithm, (tmp_path / "a.img").read_bytes()).hexdigest()
    right = ImageRef(str(tmp_path / "a.img"), f"{algorithm}:{digits.upper()}")
    wrong = ImageRef(str(tmp_path / "a.img"), f"{algorithm}:{'0' * len(digits)}")
    with pytest.raises(ChecksumMismatch, match=f"{algorithm}:{digits}"):
        fetch(cache, wrong)
    assert kept(tmp_path) == []
    assert fetch(cache, right).format == "qcow2"
    assert cache.is_cached(wrong) is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_an_image_that_is_here_by_its_checksum_needs_no_source(algorithm: str, cache: ImageCache, tmp_path: Path) -> None:
    make_qcow2(tmp_path / "a.img")
    checksum = f"{algorithm}:{hashlib.new(algorithm, (tmp_path / 'a.img').read_bytes()).hexdigest()}"
    found = fetch(cache, ImageRef(str(tmp_path / "a.img"), checksum))
    assert fetch(cache, ImageRef("http://127.0.0.1:1/elsewhere", checksum)) == found


@pytest.mark.parametrize(
    ("checksum", "url"), [("md5:00", "/a"), ("sha256:12", "/a"), ("sha256:" + "g" * 64, "/a"), (None, "a"), (None, "ftp://h/a"),
                          (None, "file://elsewhere/a")],
)  # fmt: skip
def test_an_address_or_checksum_of_no_kind_is_said_by_fetch_and_no_hit(
    checksum: str | None, url: str, cache: ImageCache
) -> None:
    assert cache.is_cached(ImageRef(url, checksum)) is None
    with pytest.raises(InvalidSpec):
        fetch(cache, ImageRef(url, checksum))


def test_what_is_no_file_is_not_found_and_why_is_said(cache: ImageCache, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {
        str(tmp_path / "absent"): "No such file",
        str(tmp_path): "no regular file",
        str(tmp_path / "pipe"): "no regular file",
        "/dev/null": "no regular file",
        f"{tmp_path}/nul\0": "null",
    }
    for path, words in cases.items():
        with pytest.raises(ImageNotFound, match=words):
            fetch(cache, ImageRef(path))
        assert cache.is_cached(ImageRef(path)) is None
    assert kept(tmp_path) == []


def test_what_is_no_image_leaves_nothing(cache: ImageCache, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("root:x:0:0\n" * 1000)
    with pytest.raises(ImageInvalid, match="no disk image"):
        fetch(cache, tmp_path / "text")
    assert kept(tmp_path) == []
    assert cache.is_cached(ImageRef(str(tmp_path / "text"))) is None


def test_a_file_that_is_larger_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images", ImagesConfig(max_size_gib=1))
    make_raw(tmp_path / "a.img", size_mib=1025)
    with pytest.raises(ImageInvalid, match=r"images\.max_size_gib") as caught:
        fetch(cache, tmp_path / "a.img")
    assert caught.value.reason == "ImageTooLarge"


def test_no_room_is_said_before_the_fetch(cache: ImageCache, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (tmp_path / "a.img").open("wb") as output:
        output.truncate(free // 512 * 512 + 512)
    with pytest.raises(NoSpace, match="free"):
        cache_of = ImageCache(tmp_path / "images", ImagesConfig(max_size_gib=1 << 20))
        fetch(cache_of, tmp_path / "a.img")
    assert kept(tmp_path) == []


def test_room_that_runs_out_on_the_way_leaves_nothing(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "_write_sparsely", full)
    with pytest.raises(NoSpace, match="free space"):
        fetch(cache, make_raw(tmp_path / "a.img"))
    assert kept(tmp_path) == []


def test_a_file_that_changes_under_the_copy_is_tried_again(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw(tmp_path / "a.img")
    write = images._write_sparsely

    def write_and_touch(descriptor: int, chunk: bytes) -> None:
        write(descriptor, chunk)
        os.utime(tmp_path / "a.img", ns=(1, 1))

    monkeypatch.setattr(images, "_write_sparsely", write_and_touch)
    with pytest.raises(ImageUnavailable, match="changed while"):
        fetch(cache, tmp_path / "a.img")
    assert kept(tmp_path) == []


def test_progress_reaches_every_waiter_and_one_fetch_serves_all(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw(tmp_path / "a.img", size_mib=8)
    gate, write, opened = threading.Event(), images._write_sparsely, []

    def slow_write(descriptor: int, chunk: bytes) -> None:
        opened.append(descriptor)
        assert len(opened) < 5 or gate.wait(20)
        write(descriptor, chunk)

    monkeypatch.setattr(images, "_write_sparsely", slow_write)
    reports: dict[int, list[tuple[int, int]]] = {number: [] for number in range(5)}
    found: list[CachedImage] = []

    def want(number: int) -> None:
        found.append(
            cache.fetch(
                ImageRef(str(tmp_path / "a.img")),
                progress=lambda done, total: reports[number].append((done, total)),
                is_cancelled=lambda: False,
            )
        )

    threads = [threading.Thread(target=want, args=(number,)) for number in reports]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(reports.values()), timeout_seconds=10, what="every waiter heard of progress")
    gate.set()
    for thread in threads:
        thread.join(20)
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(opened) == 8  # a mebibyte each, all for one copy
    assert {total for told in reports.values() for _, total in told} == {8 * MIB}


def test_one_waiter_leaves_and_the_others_get_their_image(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageRef(str(make_raw(tmp_path / "a.img")))
    gate, write = threading.Event(), images._write_sparsely
    monkeypatch.setattr(images, "_write_sparsely", lambda *arguments: (gate.wait(20), write(*arguments)))
    outcome: dict[str, object] = {}
    joined = threading.Event()

    def first() -> None:
        try:
            cache.fetch(image, progress=ignore, is_cancelled=joined.is_set)
        except Cancelled as error:
            outcome["first"] = error

    def second() -> None:
        outcome["second"] = cache.fetch(image, progress=lambda *_: joined.set(), is_cancelled=lambda: False)

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    wait_until(lambda: cache._flights, timeout_seconds=5, what="the fetch began")
    threads[1].start()
    threads[0].join(10)
    assert isinstance(outcome["first"], Cancelled)
    gate.set()
    threads[1].join(10)
    assert isinstance(outcome["second"], CachedImage)


def test_a_fetch_that_nobody_waits_for_ends_and_leaves_nothing(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw(tmp_path / "a.img")
    gate, write = threading.Event(), images._write_sparsely
    monkeypatch.setattr(images, "_write_sparsely", lambda *arguments: (gate.wait(20), write(*arguments)))
    with pytest.raises(Cancelled):
        cache.fetch(ImageRef(str(tmp_path / "a.img")), progress=ignore, is_cancelled=lambda: bool(cache._flights))
    gate.set()
    wait_until(lambda: not cache._flights, timeout_seconds=10, what="the fetch ended")
    assert kept(tmp_path) == []
    assert fetch(cache, tmp_path / "a.img").format == "raw"


def test_a_failure_is_told_to_every_waiter_by_an_exception_of_its_own() -> None:
    go = threading.Event()

    def work(flight: Flight[str]) -> str:
        assert go.wait(10)
        raise NoSpace("full")

    flight = Flight(work=work, landed=lambda _: None)
    assert flight.join()
    flight.take_off("x")
    caught: list[NoSpace] = []

    def wait() -> None:
        with pytest.raises(NoSpace, match="full") as info:
            flight.wait(ignore, lambda: False)
        caught.append(info.value)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert len({id(error) for error in caught}) == 2
    assert not flight.join()


DYING = """
import os, sys
from common.config import ImagesConfig
from common.model import ImageRef
from ecompute import images
images._write_sparsely = lambda *_: os.kill(os.getpid(), 9)
cache = images.ImageCache(images.Path(sys.argv[1]), ImagesConfig())
cache.fetch(ImageRef(sys.argv[2]), progress=lambda *_: None, is_cancelled=lambda: False)
"""


def test_what_a_killed_process_left_is_no_image_and_goes_at_the_next_start(tmp_path: Path) -> None:
    make_raw(tmp_path / "a.img")
    command = [sys.executable, "-c", DYING, str(tmp_path / "images"), str(tmp_path / "a.img")]
    died = subprocess.run(command, cwd=ROOT, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert [name for name in kept(tmp_path) if name.endswith(".partial")]
    living = files.partial_path(tmp_path / "images" / "fetch")
    with living.open("wb") as held:  # as by another process that is fetching now
        fcntl.flock(held, fcntl.LOCK_EX)
        cache = ImageCache(tmp_path / "images", ImagesConfig())
        assert kept(tmp_path) == [living.name]
    assert cache.is_cached(ImageRef(str(tmp_path / "a.img"))) is None
    assert fetch(cache, tmp_path / "a.img").format == "raw"


def test_half_a_note_in_the_index_goes_at_the_next_start(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images", ImagesConfig())
    fetch(cache, make_raw(tmp_path / "a.img"))
    (whole,) = (tmp_path / "images" / "index").iterdir()
    files.partial_path(whole).write_text('{"dig')
    assert ImageCache(tmp_path / "images", ImagesConfig()).is_cached(ImageRef(str(tmp_path / "a.img"))) is not None
    assert list((tmp_path / "images" / "index").iterdir()) == [whole]


def test_an_index_that_cannot_be_read_only_costs_a_fetch(cache: ImageCache, tmp_path: Path) -> None:
    image = ImageRef(str(make_raw(tmp_path / "a.img")))
    found = fetch(cache, image)
    for entry in (tmp_path / "images" / "index").iterdir():
        entry.write_bytes(b"{half")
    assert cache.is_cached(image) is None
    assert fetch(cache, image) == found


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd
}  # fmt: skip


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_packed_image_is_checked_as_published_and_kept_as_unpacked(
    packing: str, algorithm: str, cache: ImageCache, tmp_path: Path
) -> None:
    content = make_raw(tmp_path / "a.raw", size_mib=32).read_bytes()
    (tmp_path / "a.img").write_bytes(PACKERS[packing](content))
    published = f"{algorithm}:{hashlib.new(algorithm, (tmp_path / 'a.img').read_bytes()).hexdigest()}"
    with pytest.raises(ChecksumMismatch, match="as downloaded"):
        fetch(cache, ImageRef(str(tmp_path / "a.img"), f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"))
    assert kept(tmp_path) == []
    image = ImageRef(str(tmp_path / "a.img"), published)
    found = fetch(cache, image)
    assert found == CachedImage(found.path, "raw", 32 * MIB, hashlib.sha256(content).hexdigest())
    assert found.path.read_bytes() == content
    assert found.path.stat().st_blocks * 512 < 3 * MIB
    again = ImageCache(tmp_path / "images", ImagesConfig())
    for known in (image, ImageRef(image.url), ImageRef("http://127.0.0.1:1/elsewhere", published)):
        assert again.is_cached(known) == found
    shutil.copy(tmp_path / "a.raw", tmp_path / "b.raw")
    assert fetch(cache, tmp_path / "b.raw") == found
    assert kept(tmp_path) == [found.path.name]


def test_what_is_packed_twice_or_no_disk_is_refused_by_what_is_inside(cache: ImageCache, tmp_path: Path) -> None:
    archive = bytes(257) + b"ustar" + bytes(MIB)
    cases = {
        "gzip": gzip.compress(gzip.compress(archive)),
        "tar archive": lzma.compress(archive),
        "is empty": bz2.compress(b""),
    }
    for words, content in cases.items():
        (tmp_path / "a.img").write_bytes(content)
        with pytest.raises(ImageInvalid, match=words):
            fetch(cache, tmp_path / "a.img")
        assert kept(tmp_path) == []


@pytest.mark.parametrize("packing", PACKERS)
def test_a_bomb_hits_the_largest_size(packing: str, cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_GIB", MIB)
    (tmp_path / "a.img").write_bytes(PACKERS[packing](bytes(510) + b"\x55\xaa" + bytes(128 * MIB)))
    with pytest.raises(ImageInvalid, match=r"images\.max_size_gib") as caught:
        fetch(cache, tmp_path / "a.img")
    assert caught.value.reason == "ImageTooLarge"
    assert kept(tmp_path) == []


def test_room_is_looked_at_while_an_image_is_unpacked(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.img").write_bytes(gzip.compress(bytes(510) + b"\x55\xaa" + bytes(80 * MIB)))
    free = iter([1 << 40, images.SPARE_BYTES - 1])
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, next(free)))
    with pytest.raises(NoSpace, match="more to come"):
        fetch(cache, tmp_path / "a.img")
    assert kept(tmp_path) == []


def test_what_a_terminal_would_obey_in_a_path_is_told_as_plain_characters(tmp_path: Path) -> None:
    image = ImageRef("file:///tmp/%1b[31mred%0anext%00")
    with pytest.raises(ImageNotFound) as caught:
        ImageCache(tmp_path, ImagesConfig()).fetch(image, progress=lambda *_: None, is_cancelled=lambda: False)
    assert r"image /tmp/\x1b[31mred\nnext\x00 cannot be read" in str(caught.value)
