"""Images under way on a host: begun, told of and given up by the same letter; a published file that nobody registers goes again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import Cancelled, Permanent, StoreUnavailable
from common.findings import Letter
from common.hardware import USUAL, DiskBus, Hardware
from common.image_jobs import ABANDONED_AFTER_SECONDS, DONE, KIND, ImageJob, Stage
from common.image_records import ImageRecord, hardware_of
from common.model import ImageRef, InstanceSpec
from ecompute import image_jobs
from ecompute.image_jobs import ImageJobs
from ecompute.image_making import Made, Tell
from ecompute.image_publishing import Published, PublishFolder
from eschedule.image_making import _completed, progress_text
from tests.support.processes import wait_until

WEB, PROVIDER = uuid4(), uuid4()
MADE = Made(Published(Path("/p/abc.qcow2"), "https://x/abc.qcow2", "sha256:abc", True), 3 << 30, "not frozen")


class Maker:
    """Makes images as the test says: each waits for ``go`` and then ends as *outcome* says."""

    def __init__(self) -> None:
        self.go, self.at_work, self.outcome = threading.Event(), threading.Event(), lambda: MADE
        self.taken_back: list[Made] = []
        self.asked: list[tuple[UUID, bool]] = []
        self.was_cancelled = threading.Event()
        self.dirty: list[Exception] = []

    def clean_up(self) -> None:
        if self.dirty:
            raise self.dirty.pop()

    def make(self, uuid: UUID, *, seals: bool, tell: Tell) -> Made:
        self.asked.append((uuid, seals))
        self.at_work.set()
        while not self.go.wait(0.01):
            try:
                tell(Stage.COPYING, 5, 10)
            except Cancelled:
                self.was_cancelled.set()
                raise
        return self.outcome()

    def take_back(self, made: Made) -> None:
        self.taken_back.append(made)


class Bench:
    def __init__(self) -> None:
        self.maker, self.now, self.named = Maker(), 1000.0, set[str]()
        self.stop = threading.Event()
        self.jobs = ImageJobs(
            self.maker,
            provider=PROVIDER,
            host="h1",
            is_named=self.is_named,
            clock=lambda: self.now,  # type: ignore[arg-type]
        )
        self.thread = threading.Thread(target=self.jobs.run, args=(self.stop,))
        self.thread.start()
        self.is_away = False

    def is_named(self, checksum: str) -> bool:
        if self.is_away:
            raise StoreUnavailable("etcd is away")
        return checksum in self.named

    def ask(self, job: UUID, kind: str = KIND, *, seal: str = "yes") -> ImageJob:
        text = self.jobs.answer(Letter(kind, {"jobs": (str(job),), "instances": (str(WEB),), "seal": (seal,)}))
        assert text is not None
        return ImageJob.from_json(text)

    def until(self, job: UUID, stage: Stage) -> ImageJob:
        return wait_until(
            lambda: found if (found := self.ask(job)).stage is stage else None, timeout_seconds=10, what=stage
        ) or self.ask(job)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(image_jobs, "LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(image_jobs, "CLEAN_AGAIN_SECONDS", 0.01)
    made = Bench()
    yield made
    made.stop.set()
    made.maker.go.set()
    made.thread.join(5)


def test_the_first_letter_begins_it_and_the_others_are_told_how_far_it_is(bench: Bench) -> None:
    job = uuid4()
    assert bench.ask(job).stage is Stage.WAITING
    told = bench.until(job, Stage.COPYING)
    assert (told.provider, told.host, told.done, told.total) == (PROVIDER, "h1", 5, 10)
    bench.maker.go.set()
    told = bench.until(job, Stage.PUBLISHED)
    assert (told.url, told.checksum, told.virtual_size_bytes, told.note) == (
        "https://x/abc.qcow2",
        "sha256:abc",
        3 << 30,
        "not frozen",
    )
    assert bench.maker.asked == [(WEB, True)], "once"


def test_one_that_failed_is_told_once_and_tried_again_when_asked_again(bench: Bench) -> None:
    def fail() -> Made:
        raise Permanent("no room", "NoSpace")

    job, bench.maker.outcome = uuid4(), fail
    bench.maker.go.set()
    told = bench.until(job, Stage.FAILED)
    assert (told.problem, told.reason) == ("no room", "NoSpace")
    bench.maker.outcome = lambda: MADE
    assert bench.until(job, Stage.PUBLISHED).url
    assert len(bench.maker.asked) == 2


def test_one_that_was_registered_is_made_anew_when_it_is_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_jobs, "LOOK_EVERY_SECONDS", 60.0)  # whoever waits for the client has not heard of it yet
    bench.jobs._is_clean.wait(5)
    job = uuid4()
    bench.maker.go.set()
    bench.until(job, Stage.PUBLISHED)
    bench.ask(job, DONE)
    bench.ask(job)
    bench.until(job, Stage.PUBLISHED)
    assert len(bench.maker.asked) == 2


def test_a_bug_is_told_as_one_and_other_images_are_made(bench: Bench) -> None:
    def break_down() -> Made:
        raise RuntimeError("oops")

    bench.maker.outcome = break_down
    bench.maker.go.set()
    assert "oops" in bench.until(uuid4(), Stage.FAILED).problem
    bench.maker.outcome = lambda: MADE
    bench.until(uuid4(), Stage.PUBLISHED)


def test_one_at_a_time_and_none_before_what_a_dead_process_left_is_gone(bench: Bench) -> None:
    first, second = uuid4(), uuid4()
    bench.until(first, Stage.COPYING)
    assert bench.ask(second).stage is Stage.WAITING
    bench.maker.go.set()
    bench.until(first, Stage.PUBLISHED)
    bench.until(second, Stage.PUBLISHED)


def test_what_nobody_asks_after_is_given_up(bench: Bench) -> None:
    bench.until(uuid4(), Stage.COPYING)
    bench.now += ABANDONED_AFTER_SECONDS + 1
    assert bench.maker.was_cancelled.wait(10)
    assert bench.maker.taken_back == []


@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_that_nobody_registered_is_removed_and_one_that_is_named_stays(bench: Bench, is_named: bool) -> None:
    bench.maker.go.set()
    job, bench.is_away = uuid4(), True
    bench.until(job, Stage.PUBLISHED)
    bench.named = {"sha256:abc"} if is_named else set()
    bench.now += ABANDONED_AFTER_SECONDS + 1
    threading.Event().wait(0.1)
    assert bench.maker.taken_back == [], "whether it is registered is not known"
    bench.is_away = False
    wait_until(lambda: not bench.jobs._jobs, timeout_seconds=10, what="it is over")
    assert bench.maker.taken_back == ([] if is_named else [MADE])


def test_what_is_registered_is_forgotten_and_stays(bench: Bench) -> None:
    bench.maker.go.set()
    job = uuid4()
    bench.until(job, Stage.PUBLISHED)
    bench.ask(job, DONE)
    wait_until(lambda: not bench.jobs._jobs, timeout_seconds=10, what="it is over")
    assert bench.maker.taken_back == []


def test_other_letters_are_others_business_and_senseless_ones_are_refused(bench: Bench) -> None:
    assert bench.jobs.answer(Letter("audit")) is None
    for arguments in ({}, {"jobs": ("x",), "instances": (str(WEB),)}, {"jobs": (str(WEB), str(WEB)), "instances": (str(WEB),)}):
        with pytest.raises(ValueError):
            bench.jobs.answer(Letter(KIND, arguments))


# -- publishing ------------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_under_its_checksum_and_once(tmp_path: Path) -> None:
    source, seen = tmp_path / "source", []
    source.write_bytes(b"begin" + bytes(9 << 20) + b"end")
    folder = PublishFolder(_made(tmp_path / "p"), "https://images.example.org/guests/", PROVIDER)
    folder.check()
    first = folder.publish(
        source, "web", lambda done, total: seen.append((done, total, sorted(p.suffix for p in (tmp_path / "p").iterdir())))
    )
    assert first.url == f"https://images.example.org/guests/{first.path.name}" and first.is_new
    assert first.checksum == f"sha256:{first.path.stem}" and first.path.read_bytes() == source.read_bytes()
    assert all(names == [".partial"] for _, _, names in seen) and seen[-1][0] == seen[-1][1] == source.stat().st_size
    again = folder.publish(source, "web", lambda *_: None)
    assert (again.path, again.is_new) == (first.path, False)
    folder.remove(first)
    folder.remove(first)
    assert list((tmp_path / "p").iterdir()) == []


def test_what_is_cut_off_leaves_nothing_and_what_died_is_cleaned_up(tmp_path: Path) -> None:
    source, directory = tmp_path / "source", _made(tmp_path / "p")
    source.write_bytes(b"x" * 100)

    def cut(_done: int, _total: int) -> None:
        raise Cancelled("enough")

    folder = PublishFolder(directory, "file:///p", PROVIDER)
    with pytest.raises(Cancelled):
        folder.publish(source, "web", cut)
    assert list(directory.iterdir()) == []
    mine, others, strange = (
        directory / name for name in (f".{PROVIDER}.web.partial", f".{uuid4()}.web.partial", "notes.partial")
    )
    for path in (mine, others, strange):
        path.write_bytes(b"half")
    folder.clean_up()
    assert sorted(directory.iterdir()) == sorted([others, strange])
    with pytest.raises(Permanent, match="is it mounted"):
        PublishFolder(tmp_path / "nowhere", "file:///p", PROVIDER).check()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


# -- the client ------------------------------------------------------------------------------------------------------------


def test_what_follows_from_the_instance_is_registered_with_the_image() -> None:
    record = ImageRecord("n", "https://x/abc.qcow2", "sha256:abc", min_disk_gib=2, properties={"os_distro": "debian"})
    job = ImageJob(PROVIDER, "h1", Stage.PUBLISHED, virtual_size_bytes=(3 << 30) + 1)
    spec = InstanceSpec(WEB, "web", ImageRef("/i"), {"VCPU": 1})
    found = _completed(record, job, spec)
    assert (found.min_disk_gib, hardware_of(found), found.properties) == (4, USUAL, {"os_distro": "debian"})
    old = InstanceSpec(WEB, "web", ImageRef("/i"), {"VCPU": 1}, hardware=Hardware(DiskBus.SATA))
    assert hardware_of(_completed(record, job, old)) == Hardware(DiskBus.SATA)


def test_progress_says_where_how_far_and_how_much() -> None:
    job = ImageJob(PROVIDER, "h1", Stage.COPYING, 5 << 20, 10 << 20)
    assert progress_text("web", "h1", job) == "image of web on h1: copying 5 of 10 MiB"
    assert progress_text("web", "h1", ImageJob(PROVIDER, "h1", Stage.SEALING)) == "image of web on h1: sealing"
