"""What leaves the image cache, what never does, and an eviction that is killed anywhere."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import DiskConfig, ImagesConfig
from common.errors import HypervisorUnavailable, NoSpace
from common.model import ImageRef
from ecompute import image_holds, images
from ecompute.cache_keeper import LOOK_EVERY_SECONDS, CacheKeeper
from ecompute.disk_use import DiskUse
from ecompute.disks import Disks
from ecompute.image_eviction import FRESH_SECONDS, Bounds, KeptImage, to_evict
from ecompute.images import CachedImage, ImageCache
from tests.support.disk_images import MIB, make_raw
from tests.support.processes import ROOT, wait_until

DAY = 86400.0

# -- what goes ---------------------------------------------------------------------------------------------------------------

KEPT = st.builds(
    KeptImage, st.text("abcdef0123456789", min_size=4, max_size=4), st.just("raw"), st.integers(0, 1000), st.floats(0, 10 * DAY)
)
IMAGES = st.lists(KEPT, max_size=12, unique_by=lambda image: image.digest)
BOUNDS = st.builds(
    Bounds, st.none() | st.integers(0, 5000), st.none() | st.floats(0, 10 * DAY), st.integers(0, 3000)
)  # fmt: skip


@given(IMAGES, BOUNDS, st.sets(st.integers(0, 11)))
def test_only_what_may_go_goes_and_no_more_than_has_to(found: list[KeptImage], bounds: Bounds, stay: set[int]) -> None:
    now, spared = 10 * DAY, {image.digest for number, image in enumerate(found) if number in stay}
    gone = to_evict(found, bounds, spared=spared, now=now)
    free = [image for image in found if image.digest not in spared and now - image.used_at >= FRESH_SECONDS]
    assert set(gone) <= set(free)
    assert [image.used_at for image in gone] == sorted(image.used_at for image in gone)
    left = sum(image.taken_bytes for image in found) - sum(image.taken_bytes for image in gone)
    freed = sum(image.taken_bytes for image in gone)
    fits = (bounds.most_bytes is None or left <= bounds.most_bytes) and freed >= bounds.wanted_bytes
    assert fits or set(gone) == set(free), "all that may go went, where that was not enough"
    if bounds.most_idle_seconds is not None:
        assert not [i for i in free if i not in gone and now - i.used_at >= bounds.most_idle_seconds]
    for number, image in enumerate(gone):  # each of them was too old, or the room of those before it was not enough
        is_old = bounds.most_idle_seconds is not None and now - image.used_at >= bounds.most_idle_seconds
        before = sum(other.taken_bytes for other in gone[:number])
        total = sum(other.taken_bytes for other in found)
        surplus = max(bounds.wanted_bytes, 0 if bounds.most_bytes is None else total - bounds.most_bytes)
        assert is_old or before < surplus


# -- with files ------------------------------------------------------------------------------------------------------------


class Host:
    """A cache, its keeper and the instances' disks, in a folder; images take 2 MiB, and days pass when they are told to."""

    def __init__(self, state: Path, **config: object) -> None:
        self.state, self.days, self.ticks, self.without_disk = state, 0.0, 0.0, list[UUID]()
        self.config = ImagesConfig(**config)  # type: ignore[arg-type]
        self.keeper = CacheKeeper(
            state / "images", (state,), self.config, missing=lambda: self.without_disk, now=self.now, clock=lambda: self.ticks
        )
        self.cache = ImageCache(state / "images", self.config, make_room=self.keeper.make_room, grown=self.keeper.grown)
        self.disks = Disks(state / "instances")
        self._numbers = iter(range(100))

    def now(self) -> float:
        return images.time.time() + self.days * DAY

    def image(self) -> CachedImage:
        """A new one, last used *now*."""
        number = next(self._numbers)
        path = make_raw(self.state.parent / f"{number}.raw", size_mib=4, pattern=number + 1)
        with path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(os.urandom(MIB))
        cached = self.cache.fetch(ImageRef(str(path)), progress=lambda *_: None, is_cancelled=lambda: False)
        self.age(cached, 0)
        return cached

    def age(self, image: CachedImage, days: float) -> None:
        os.utime(image.path, (self.now() - days * DAY,) * 2)

    def look(self) -> None:
        self.ticks += LOOK_EVERY_SECONDS
        self.keeper.look()

    def kept(self) -> set[str]:
        return {image.digest for image in self.keeper.images()}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def tiny(monkeypatch: pytest.MonkeyPatch, gib: int = MIB) -> None:
    monkeypatch.setattr("ecompute.cache_keeper._GIB", gib)


def test_an_image_that_nothing_rests_on_goes_when_it_is_old_enough(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    host = Host(state, evict_after_days=7)
    used, unused, young = host.image(), host.image(), host.image()
    one = uuid4()
    host.disks.build(one, used, 1)
    host.days = 8
    host.age(young, 6.9)
    host.look()
    assert host.kept() == {used.digest, young.digest}
    assert f"digest={unused.digest[:12]}" in caplog.text or unused.digest[:12] in str([r.__dict__ for r in caplog.records])
    assert [path for path in (state / "images/index").glob("*.json") if unused.digest in path.read_text()] == []
    host.disks.remove(one)
    host.look()
    assert used.digest in host.kept(), "it was in use until now, however long ago the disk was made"
    host.days = 16
    host.look()
    assert host.kept() == set()


def test_without_bounds_nothing_goes(state: Path) -> None:
    host = Host(state)
    images = {host.image().digest, host.image().digest}
    host.days = 3000
    host.look()
    assert host.kept() == images


def test_the_longest_unused_go_when_there_are_too_many(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    host = Host(state, max_cache_gib=5)  # of 2 "GiB" each
    first, second = host.image(), host.image()
    host.age(first, 1), host.age(second, 2)
    third = host.image()
    host.keeper.grown()
    assert host.kept() == {first.digest, third.digest}


def test_a_fetch_that_makes_it_too_big_is_followed_at_once(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    host = Host(state, max_cache_gib=3)
    old = host.image()
    host.age(old, 1)
    new = host.image()
    assert host.kept() == {new.digest}


def test_what_was_just_fetched_or_held_stays_however_much_it_is(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny(monkeypatch)
    host = Host(state, max_cache_gib=1)
    fresh, held = host.image(), host.image()
    host.age(held, 5)
    with image_holds.shared(held.path):
        host.age(held, 5)
        host.keeper.grown()
        assert host.kept() == {fresh.digest, held.digest}
    for _ in range(3):
        host.look()
    assert host.kept() == {fresh.digest}
    assert caplog.text.count("they are in use, pinned, or were just fetched") <= 2


def test_room_is_made_for_an_image_that_finds_none(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(state)
    old, older, used = host.image(), host.image(), host.image()
    host.disks.build(uuid4(), used, 1)
    host.age(old, 1), host.age(older, 2), host.age(used, 3)
    usage, everything = shutil.disk_usage(state), 3 * 2 * MIB

    def free(_: object) -> object:
        taken = sum(image.taken_bytes for image in host.keeper.images())
        return usage._replace(free=images.SPARE_BYTES + 3 * MIB + everything - taken)

    monkeypatch.setattr(images.shutil, "disk_usage", free)
    new = host.image()  # of 4 MiB where 3 are left
    assert host.kept() == {old.digest, used.digest, new.digest}, "no more than had to go"
    host.age(old, 1), host.age(new, 0.5)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: usage._replace(free=MIB))
    with pytest.raises(NoSpace, match="free space on that file system"):
        host.image()
    assert host.kept() == {used.digest}


def test_an_image_that_is_listed_stays(state: Path) -> None:
    host = Host(state, evict_after_days=1, prefetch=("debian-12", "/srv/other.raw"))
    pinned, other = host.image(), host.image()
    host.cache.pin("debian-12", pinned)
    host.cache.pin("no-longer-listed", other)
    host.days = 9
    host.look()
    assert host.kept() == {pinned.digest}
    unlisted = CacheKeeper(state / "images", (state,), ImagesConfig(evict_after_days=1), now=host.now, clock=lambda: 1e9)
    unlisted.look()
    assert host.kept() == set()


def test_nothing_goes_while_a_guests_disk_cannot_be_found(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when the file system of the instances is not mounted, which makes every image look unused."""
    host, guest = Host(state, evict_after_days=1), uuid4()
    image = host.image()
    host.disks.build(guest, image, 1)
    shutil.move(state / "instances", state.parent / "elsewhere")
    host.without_disk, host.days = [guest], 9
    for _ in range(3):
        host.look()
        assert host.keeper.make_room(1 << 40) is False
    assert host.kept() == {image.digest}
    assert caplog.text.count(f"the disk of {guest} is not there") == 1
    shutil.move(state.parent / "elsewhere", state / "instances")
    host.without_disk = []
    host.look()
    assert host.kept() == {image.digest}


@pytest.mark.parametrize("fault", ["unreadable", "libvirt"])
def test_what_is_not_certain_stays(fault: str, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = Host(state, evict_after_days=1)
    image = host.image()
    if fault == "unreadable":
        (state / "instances" / "link").symlink_to("/mnt/not/there")
    else:

        def away() -> list[UUID]:
            raise HypervisorUnavailable("libvirt is away")

        host.keeper._missing = away
    host.days = 9
    host.look()
    assert host.kept() == {image.digest}
    assert "cannot be" in caplog.text


def test_it_looks_once_an_hour(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, looks = Host(state, evict_after_days=1), []
    host.image()
    monkeypatch.setattr(host.keeper, "_users", lambda: looks.append(1) or pytest.fail("not asked for"))
    host.ticks = 1.0
    monkeypatch.setattr(CacheKeeper, "_evict", lambda *_, **__: looks.append(1))
    for _ in range(5):
        host.keeper.look()
    host.ticks += LOOK_EVERY_SECONDS
    host.keeper.look()
    assert len(looks) == 2


def test_what_is_known_of_each_image(state: Path) -> None:
    host = Host(state, prefetch=("debian-12",))
    image, other = host.image(), host.image()
    host.cache.pin("debian-12", image)
    for _ in range(2):
        host.disks.build(uuid4(), image, 1)
    host.age(other, 1)
    first, second = host.keeper.held()
    assert (first.image.digest, len(first.instances), first.is_pinned) == (image.digest, 2, True)
    assert first.sources == (str(state.parent / "0.raw"),)
    assert (second.image.digest, second.instances, second.is_pinned) == (other.digest, frozenset(), False)
    assert 3 * MIB >= second.image.taken_bytes >= 2 * MIB


# -- what is reserved --------------------------------------------------------------------------------------------------------


def test_what_is_reserved_is_the_bound_or_what_there_is(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbounded = Host(state).keeper
    host = Host(state)
    host.image()
    assert unbounded.taken_bytes() == sum(image.taken_bytes for image in host.keeper.images())
    assert Host(state, max_cache_gib=50).keeper.taken_bytes() == 50 << 30
    tiny(monkeypatch)
    assert Host(state, max_cache_gib=1).keeper.taken_bytes() == host.keeper.taken_bytes()


def test_others_add_what_they_take_and_a_fault_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    use, sizes = DiskUse(), {"images": 3 << 29, "snapshots": 5}
    assert use.gib() == 0
    use.add("images", lambda: sizes["images"])
    use.add("snapshots", lambda: sizes["snapshots"])
    assert use.gib() == 2
    del sizes["images"]
    use.add("images", lambda: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    sizes["snapshots"] = 2 << 30
    assert use.gib() == 4, "three and a half"
    sizes["snapshots"] -= 6
    assert use.gib() == 3
    assert "what images take of the disk cannot be measured" in caplog.text


# -- a build at the same time --------------------------------------------------------------------------------------------


def test_an_eviction_and_builds_at_the_same_time(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk ever rests on an image that is gone, whoever comes first."""
    monkeypatch.setattr("ecompute.image_eviction.FRESH_SECONDS", -1e12)
    host = Host(state, evict_after_days=0.0001)
    path = make_raw(state.parent / "image.raw")
    ref, stop, built, evicted = ImageRef(str(path)), threading.Event(), [], []

    def evict() -> None:
        while not stop.is_set():
            if host.keeper._evict(Bounds(wanted_bytes=1)):
                evicted.append(1)

    def build() -> None:
        while not stop.is_set():
            host.cache.fetch(ref, progress=lambda *_: None, is_cancelled=lambda: False)
            with host.cache.held(ref) as image:
                if image is None:
                    continue
                uuid = uuid4()
                host.disks.build(uuid, image, 1)
            assert image.path.exists(), "it went though a disk rests on it"
            built.append(uuid)
            host.disks.remove(uuid)

    threads = [threading.Thread(target=work) for work in (evict, build)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(built) >= 30 and len(evicted) >= 10, timeout_seconds=60, what="both have had their turns")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_who_waited_for_a_look_learns_that_the_image_is_gone(state: Path) -> None:
    host = Host(state)
    image = host.image()
    answers: list[bool] = []

    def hold() -> None:
        with image_holds.shared(image.path) as is_there:
            answers.append(is_there)

    with image_holds.alone(image.path) as is_ours:
        assert is_ours
        with image_holds.alone(image.path) as again:
            assert not again
        thread = threading.Thread(target=hold)
        thread.start()
        image.path.unlink()
    thread.join(10)
    assert answers == [False]
    with image_holds.shared(image.path) as is_there, image_holds.alone(image.path) as is_ours:
        assert (is_there, is_ours) == (False, False)


def test_the_lock_is_of_a_kind_that_qemu_does_not_meet(state: Path) -> None:
    image = Host(state).image()
    with image_holds.alone(image.path), image.path.open("r+b") as other:
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- killed ----------------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from common.config import ImagesConfig
from ecompute import cache_keeper, image_holds, image_users
from ecompute.image_index import ImageIndex
point, state = sys.argv[1:]
module, name, when, count = point.split(":")
owner = {"keeper": cache_keeper, "class": cache_keeper.CacheKeeper, "path": Path, "index": ImageIndex, "users": image_users}[module]
original, left = getattr(owner, name), [int(count)]
def die(*arguments, **named):
    left[0] -= 1
    if not left[0] and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = original(*arguments, **named)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(owner, name, die)
state = Path(state)
cache_keeper.CacheKeeper(state / "images", (state,), ImagesConfig(evict_after_days=1), clock=lambda: 1e9).look()
"""
POINTS = [
    f"{point}:{when}:{count}"
    for point, counts in {
        "class:_check_all_disks_are_there": (1,), "users:_look": (1, 2), "class:_note_use": (1,), "class:_remove": (1, 2, 3),
        "keeper:fsync_directory": (1,), "index:drop": (1,), "path:unlink": (2, 4, 5),
    }.items()
    for count in counts
    for when in ("before", "after")
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_whoever_is_killed_in_an_eviction_leaves_a_cache_that_works(point: str, state: Path) -> None:
    host = Host(state)
    refs = [host.image() for _ in range(4)]
    used, unused = refs[0], refs[1:]
    for image in refs:
        host.age(image, 5)
    host.disks.build(uuid4(), used, 1)
    command = [sys.executable, "-c", DYING, point, str(state)]
    died = subprocess.run(command, cwd=ROOT, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert used.digest in host.kept()

    again = Host(state, evict_after_days=1)
    for number, image in enumerate(refs):  # found or fetched, whatever the index says of those that went
        ref = ImageRef(str(state.parent / f"{number}.raw"))
        assert again.cache.fetch(ref, progress=lambda *_: None, is_cancelled=lambda: False) == dataclasses.replace(image)
        again.age(image, 5)
    again.look()
    assert again.kept() == {used.digest}
    assert {image.digest for image in unused}.isdisjoint(again.kept())


def test_a_copied_disk_needs_no_image(state: Path) -> None:
    host = Host(state, evict_after_days=1)
    image = host.image()
    Disks(state / "instances", DiskConfig(mode="raw")).build(uuid4(), image, 1)
    host.days = 9
    host.look()
    assert host.kept() == set()
