"""Images that are fetched ahead: by letters that repeat themselves, and because compute.yaml lists them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.config import ImagesConfig
from common.errors import Permanent
from common.image_letters import CachedRow, CacheReport, FetchState, PrefetchReport, fitted
from common.image_records import ImageRecord
from common.keys import Keys
from common.model import ImageRef
from common.store import Transaction
from ecompute import prefetcher as module
from ecompute.image_index import ImageIndex
from ecompute.images import ImageCache
from ecompute.prefetcher import AGAIN_AFTER_FAILURE_SECONDS, AGAIN_SECONDS, Prefetcher, resolved
from tests.fakes.store import FakeStore
from tests.support.disk_images import make_raw, sha256
from tests.support.processes import wait_until

KEYS = Keys("/t/")


def put(store: FakeStore, record: ImageRecord) -> None:
    store.commit(Transaction(puts={KEYS.image(record.name): record.to_json()}))


class Bench:
    """A prefetcher in a thread, over a store in memory and a cache in a folder."""

    def __init__(self, directory: Path, *wanted: str) -> None:
        self.directory, self.store, self.now = directory, FakeStore(), 0.0
        self.cache = ImageCache(directory / "images", ImagesConfig(prefetch=wanted))
        self.prefetcher = Prefetcher(self.cache, self.store, KEYS, wanted, clock=lambda: self.now)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.prefetcher.run, args=(self._stop,))

    def begin(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self.prefetcher.wake()
        if self._thread.ident:
            self._thread.join(20)
            assert not self._thread.is_alive()

    def register(self, name: str, path: Path) -> None:
        put(self.store, ImageRecord(name, str(path), f"sha256:{sha256(path)}"))

    def end_of(self, request: str, image: ImageRef) -> module.Progress:
        return wait_until(
            lambda: progress if (progress := self.prefetcher.ask(request, image)).state.is_over else None,
            timeout_seconds=20, what="the fetch is over",
        )  # fmt: skip

    def pinned(self) -> set[str]:
        return ImageIndex(self.directory / "images/index").pinned(["debian-12"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, "debian-12")
    yield made
    made.close()


def test_a_letter_begins_a_fetch_once_and_is_told_how_it_goes(bench: Bench, tmp_path: Path) -> None:
    image = ImageRef(str(make_raw(tmp_path / "a.raw")))
    assert bench.prefetcher.ask("one", image) == module.Progress(FetchState.WAITING)
    assert bench.prefetcher.ask("one", image).state is FetchState.WAITING
    bench.begin()
    done = bench.end_of("one", image)
    assert (done.state, done.digest) == (FetchState.HERE, sha256(tmp_path / "a.raw"))
    assert bench.prefetcher.ask("another", image) == module.Progress(FetchState.HERE, digest=done.digest), "at once"


def test_what_fails_says_why_and_another_letter_tries_again(bench: Bench, tmp_path: Path) -> None:
    bench.begin()
    image = ImageRef(str(tmp_path / "late.raw"))
    failed = bench.end_of("one", image)
    assert failed.state is FetchState.FAILED and "cannot be read" in failed.message
    away = bench.end_of("two", ImageRef("http://127.0.0.1:9/x"))
    assert away.state is FetchState.UNAVAILABLE
    make_raw(tmp_path / "late.raw")
    assert bench.prefetcher.ask("one", image) == failed, "who asked first is told what came of it"
    assert bench.end_of("three", image).state is FetchState.HERE


def test_a_bug_is_said_and_the_next_one_is_fetched(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.begin()
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "fetch", lambda *_, **__: 1 / 0)
        assert "a bug of ecompute" in bench.end_of("one", ImageRef("/x")).message
    assert bench.end_of("two", ImageRef(str(make_raw(tmp_path / "a.raw")))).state is FetchState.HERE


def test_letters_of_long_ago_are_forgotten_and_those_under_way_are_not(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_REMEMBERED", 3)
    image = ImageRef(str(make_raw(tmp_path / "a.raw")))
    bench.prefetcher.ask("under way", ImageRef(str(make_raw(tmp_path / "b.raw"))))
    bench.cache.fetch(image, progress=lambda *_: None, is_cancelled=lambda: False)
    for number in range(10):
        bench.prefetcher.ask(str(number), image)
    assert len(bench.prefetcher._jobs) <= 5 and "under way" in bench.prefetcher._jobs


def test_what_is_listed_is_fetched_pinned_and_looked_at_again(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def due_at() -> float:
        return bench.prefetcher._due_at["debian-12"]

    bench.begin()
    wait_until(lambda: due_at() == AGAIN_AFTER_FAILURE_SECONDS, timeout_seconds=20, what="it was tried in vain")
    wait_until(lambda: "there is no image debian-12 in the registry" in caplog.text, timeout_seconds=20, what="it is said")
    first, second = make_raw(tmp_path / "1.raw", pattern=1), make_raw(tmp_path / "2.raw", pattern=2)
    bench.register("debian-12", first)
    bench.prefetcher.look()
    assert due_at() == AGAIN_AFTER_FAILURE_SECONDS, "it is not time yet"
    bench.now = AGAIN_AFTER_FAILURE_SECONDS
    bench.prefetcher.look()
    wait_until(lambda: bench.pinned() == {sha256(first)}, timeout_seconds=20, what="it was fetched")
    wait_until(lambda: due_at() == bench.now + AGAIN_SECONDS, timeout_seconds=20, what="it is due in an hour")
    bench.register("debian-12", second)  # the name was given to another image
    bench.now += AGAIN_SECONDS
    bench.prefetcher.look()
    wait_until(lambda: bench.pinned() == {sha256(second)}, timeout_seconds=20, what="the other one was fetched")


def test_what_an_item_means() -> None:
    store = FakeStore()
    assert resolved(store, KEYS, "https://images.example.org/a.qcow2") == ImageRef("https://images.example.org/a.qcow2")
    with pytest.raises(Permanent, match="no image debian-12"):
        resolved(store, KEYS, "debian-12")
    put(store, ImageRecord("debian-12", "/a", "sha256:" + "0" * 64))
    assert resolved(store, KEYS, "debian-12") == ImageRef("/a", "sha256:" + "0" * 64, "debian-12")


def test_the_answers_read_as_they_were_written_and_fit_into_a_letter() -> None:
    report = PrefetchReport(uuid4(), "node1", FetchState.FETCHING, 5, 10)
    assert PrefetchReport.from_json(report.to_json()) == report
    rows = tuple(
        CachedRow(hashlib.sha256(bytes([n])).hexdigest(), "raw", n, "2026-01-01", n, False, ("x" * 200,)) for n in range(100)
    )
    cache = CacheReport(uuid4(), "node1", rows)
    assert CacheReport.from_json(fitted(cache)) == cache
    cut = CacheReport.from_json(fitted(cache, 10_000))
    assert len(cut.images) + cut.left_out == 100 and cut.images == rows[: len(cut.images)] and cut.images
