"""A copy of a disk rests on nothing and is of one moment, whether its guest is up, off, or changes its mind meanwhile."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.config import DiskConfig
from common.errors import Cancelled, Conflict, HypervisorRejected, HypervisorUnavailable, NoSpace, Permanent
from common.image_jobs import Stage
from ecompute import disk_copying
from ecompute.disk_copying import DiskCopier
from ecompute.disks import Disks
from ecompute.domain_xml import domain_xml
from ecompute.hypervisor import Copying, CopyState
from ecompute.image_making import CANNOT_SEAL, ImageMaker
from ecompute.image_publishing import PublishFolder
from ecompute.images import CachedImage
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.domains import a_context, a_spec

PROVIDER = UUID(int=1)


class Scene:
    """One instance with a disk of 1 GiB over an image of the cache."""

    def __init__(self, folder: Path, image_format: str = "raw", config: DiskConfig = DiskConfig()) -> None:  # noqa: B008 - frozen
        self.folder, self.hypervisor, self.disks = folder, FakeHypervisor(), Disks(folder / "instances", config)
        images = folder / "images"
        images.mkdir()
        base = images / f"base.{image_format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, base, "4M"], check=True, timeout=20)
        base.chmod(0o644)
        self.io(base, "write -P 1 0 1M", image_format)
        spec = a_spec()
        self.uuid = spec.uuid
        self.disk = self.disks.build(self.uuid, CachedImage(base, image_format, 4 << 20, "0" * 64), 1)
        self.disk_format = "raw" if config.mode == "raw" else "qcow2"
        self.io(self.disk, "write -P 2 500M 1M", self.disk_format)
        self.hypervisor.define(domain_xml(spec, a_context()))
        self.copier = DiskCopier(self.hypervisor, self.disks, directory=folder / "copies", images=images)
        self.copier.clean_up()

    @staticmethod
    def io(disk: Path, words: str, image_format: str = "qcow2") -> None:
        subprocess.run(["qemu-io", "-f", image_format, "-c", words, disk], check=True, timeout=20, stdout=subprocess.DEVNULL)

    def is_copy(self, path: Path) -> bool:
        told = subprocess.run(["qemu-img", "info", path], check=True, capture_output=True, text=True, timeout=20).stdout
        compared = ["qemu-img", "compare", "-q", "-F", self.disk_format, path, self.disk]
        same = subprocess.run(compared, check=False, timeout=30).returncode == 0
        return same and "backing" not in told

    def left(self) -> list[str]:
        return [path.name for path in (self.folder / "copies").iterdir()]

    def copies_live(self, *states: CopyState) -> None:
        self.hypervisor.start(self.uuid)

        def begin(_uuid: UUID, target: Path) -> Copying:
            self.hypervisor.copy_states[:] = states
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", self.disk, target], check=True, timeout=30)
            return Copying.FROZEN

        self.hypervisor.begins_copy = begin


@pytest.fixture(params=["raw", "qcow2"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, request.param)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(disk_copying, "REPORT_EVERY_SECONDS", 0.01)
    yield Scene(tmp_path)


def test_a_disk_at_rest_is_copied_with_what_it_rests_on(scene: Scene) -> None:
    with scene.copier.copied(scene.uuid, lambda *_: None) as (path, how):
        assert scene.is_copy(path) and how is None
    assert scene.left() == []


def test_a_raw_disk_is_copied_whatever_its_guest_wrote_to_its_beginning(tmp_path: Path) -> None:
    scene = Scene(tmp_path, config=DiskConfig(mode="raw"))
    with scene.copier.copied(scene.uuid, lambda *_: None) as (path, how):
        assert scene.is_copy(path) and how is None
    header = tmp_path / "header.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "images" / "base.raw", "-F", "raw", header, "1G"]
    subprocess.run(command, check=True, timeout=20)
    with scene.disk.open("r+b") as disk:
        disk.write(header.read_bytes()[:65536])
    with scene.copier.copied(scene.uuid, lambda *_: None) as (path, _):
        assert scene.is_copy(path)
    assert scene.left() == []


def test_a_disk_in_use_is_copied_by_whoever_uses_it(raw: Scene) -> None:
    seen: list[tuple[int, int]] = []
    raw.copies_live(CopyState(True, 1, 9), CopyState(True, 5, 9), CopyState(False, 9, 9))
    with raw.copier.copied(raw.uuid, lambda *far: seen.append(far)) as (path, how):
        assert raw.is_copy(path) and how is Copying.FROZEN
    assert seen == [(1, 9), (5, 9)] and raw.left() == []
    assert raw.hypervisor.calls[-1] == ("end_copy", raw.uuid)


def test_its_end_is_heard_not_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_copying, "REPORT_EVERY_SECONDS", 60.0)
    scene = Scene(tmp_path)
    scene.copies_live(CopyState(True), CopyState(False))
    threading.Timer(0.3, lambda: [tell(scene.uuid) for tell in scene.hypervisor.copies_ended]).start()
    with scene.copier.copied(scene.uuid, lambda *_: None) as (path, _):
        assert scene.is_copy(path)


def test_a_guest_that_goes_down_meanwhile_is_copied_again_at_rest(raw: Scene) -> None:
    raw.copies_live(CopyState(True), CopyState(False, problem="the guest went down"))
    with raw.copier.copied(raw.uuid, lambda *_: raw.hypervisor.destroy(raw.uuid)) as (path, how):
        assert raw.is_copy(path) and how is None


def test_a_guest_that_is_started_meanwhile_is_not_kept_waiting_and_copied_again(raw: Scene) -> None:
    before = [True]

    def start(*_: int) -> None:
        if before and before.pop():
            raw.copies_live(CopyState(False))

    with raw.copier.copied(raw.uuid, start) as (path, how):
        assert raw.is_copy(path)
    assert how in (Copying.FROZEN, None)  # None: the copy was whole before it went up


def test_a_disk_that_changes_while_it_is_cloned_is_cloned_again(raw: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    clone, before = disk_copying._clone, [True]

    def changed(source: Path, target: Path, report: disk_copying.Report) -> None:
        clone(source, target, report)
        if before and before.pop():
            raw.io(raw.disk, "write -P 3 600M 1M")

    monkeypatch.setattr(disk_copying, "_clone", changed)
    with raw.copier.copied(raw.uuid, lambda *_: None) as (path, _):
        assert raw.is_copy(path)


def test_what_keeps_changing_is_given_up(raw: Scene) -> None:
    raw.copies_live(*[CopyState(False, problem="gone")])
    raw.hypervisor.begins_copy = lambda _uuid, _target: (_ for _ in ()).throw(Conflict("it does not run with that"))
    with pytest.raises(Conflict), raw.copier.copied(raw.uuid, lambda *_: None):
        pass
    assert raw.left() == []


@pytest.mark.parametrize(("problem", "error"), [("No space left on device", NoSpace), ("something else", HypervisorRejected)])
def test_a_copy_that_fails_while_the_guest_runs_says_why(raw: Scene, problem: str, error: type[Permanent]) -> None:
    raw.copies_live(CopyState(False, problem=problem))
    with pytest.raises(error, match=problem), raw.copier.copied(raw.uuid, lambda *_: None):
        pass
    assert raw.left() == []


def test_what_is_given_up_leaves_nothing(raw: Scene) -> None:
    def cancel(*_: int) -> None:
        raise Cancelled("enough")

    raw.copies_live(CopyState(True))
    with pytest.raises(Cancelled), raw.copier.copied(raw.uuid, cancel):
        pass
    assert raw.left() == [] and raw.hypervisor.calls[-1] == ("end_copy", raw.uuid)


def test_what_a_dead_process_left_is_ended_and_removed_once_libvirt_answers(raw: Scene) -> None:
    left = raw.folder / "copies" / str(raw.uuid)
    left.mkdir()
    (left / "0.qcow2").write_bytes(b"half")
    raw.hypervisor.fail_next("end_copy", HypervisorUnavailable("libvirtd is away"))
    with pytest.raises(HypervisorUnavailable):
        raw.copier.clean_up()
    assert raw.left() == [str(raw.uuid)]
    raw.copier.clean_up()
    assert raw.left() == [] and ("end_copy", raw.uuid) in raw.hypervisor.calls


def test_a_disk_that_leads_elsewhere_is_not_followed(raw: Scene) -> None:
    """A guest that broke out of its QEMU may have written that."""
    secret = raw.folder / "secret"
    secret.write_bytes(b"the host's own" + bytes(4 << 20))
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", secret, raw.disk], check=True, timeout=20)
    with pytest.raises(Permanent, match="no image of this host's cache"), raw.copier.copied(raw.uuid, lambda *_: None):
        pass
    link = raw.folder / "images" / "link.raw"
    link.symlink_to(secret)
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", link, raw.disk], check=True, timeout=20)
    with pytest.raises(Permanent, match="no image of this host's cache"), raw.copier.copied(raw.uuid, lambda *_: None):
        pass


def test_an_instance_without_a_disk_has_no_image(raw: Scene) -> None:
    with pytest.raises(Permanent, match="has no disk"), raw.copier.copied(UUID(int=5), lambda *_: None):
        pass


class Sealer:
    def __init__(self) -> None:
        self.sealed: list[Path] = []

    def seal(self, disk: Path, *, what: str) -> None:
        self.sealed.append(disk)
        Scene.io(disk, "write -P 7 0 64k")


def test_an_image_is_sealed_where_it_is_to_be_before_anybody_can_read_it(raw: Scene) -> None:
    sealer, published = Sealer(), raw.folder / "p"
    published.mkdir()
    folder = PublishFolder(published, "https://x", PROVIDER)
    stages: list[Stage] = []

    def tell(stage: Stage, *_: int) -> None:
        stages.append(stage)

    made = ImageMaker(raw.copier, folder, lambda: sealer).make(raw.uuid, seals=True, tell=tell)
    assert (made.virtual_size_bytes, made.note, len(sealer.sealed)) == (1 << 30, "", 1)
    assert stages.index(Stage.SEALING) < stages.index(Stage.PUBLISHING)
    raw.io(made.published.path, "read -P 7 0 64k")
    plain = ImageMaker(raw.copier, folder, lambda: None)
    assert plain.make(raw.uuid, seals=False, tell=tell).published.path != made.published.path
    with pytest.raises(Permanent) as refused:
        plain.make(raw.uuid, seals=True, tell=tell)
    assert str(refused.value) == CANNOT_SEAL
    with pytest.raises(Permanent, match="set images"):
        ImageMaker(raw.copier, None, lambda: sealer).make(raw.uuid, seals=False, tell=tell)
