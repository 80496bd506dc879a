"""Has an image fetched and a disk built by children that kill themselves at one line of the code after the other, and looks at
what each of them left: ``python -m tests.support.killed_lines DIRECTORY IMAGE [MODULE…]``.

What to look at is known from a first child, which lives: each line that it comes to of the modules below, or those named. Each is then the death
of two children, where it is come to the first time and the last time. Prints how many died; exits with 1 and says where, if what
one left is not whole, or does not heal. A process of its own, so that children are forked from one without threads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from common import files
from common.config import ImagesConfig
from common.model import ImageRef
from ecompute import (
    disks,
    image_conversion,
    image_flight,
    image_holds,
    image_index,
    image_sources,
    image_unpacking,
    images,
    qcow2_overlay,
)
from ecompute import qemu_img as child
from tests.support.disk_images import qemu_img, qemu_img_info, sha256

MODULES = (
    files, disks, child, image_conversion, image_flight, image_holds, image_index, image_sources, image_unpacking, images, qcow2_overlay,
)  # fmt: skip
TRACED = {module.__file__ for module in MODULES if module.__name__.rpartition(".")[2] in sys.argv[3:] or len(sys.argv) < 4}
INSTANCE = UUID(int=7)
CHILD_SECONDS = 60.0
Line = tuple[str, int]


def work(directory: Path, image: str) -> Path:
    """What ecompute does from a request's image to its disk, with the objects that a fresh process makes; the disk."""
    cache, instances = images.ImageCache(directory / "images", ImagesConfig()), disks.Disks(directory / "instances")
    cached = cache.fetch(ImageRef(image), progress=lambda *_: None, is_cancelled=lambda: False)
    return instances.build(INSTANCE, cached, 1)


class Tracer:
    """Calls *at* with each traced line, in whichever thread, before it is run."""

    def __init__(self, at: Callable[[Line], None]) -> None:
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            self._at((frame.f_code.co_filename, frame.f_lineno))
        return self

    def start(self) -> None:
        threading.settrace(self)
        sys.settrace(self)


def forked(run: Callable[[], None]) -> int:
    """The wait status of a child that does *run* and nothing else."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - the child goes no further, whatever it was
            os.write(2, f"the child failed: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise SystemExit(f"a child has not ended after {CHILD_SECONDS:.0f} s")


def lines_of(directory: Path, image: str) -> Counter[Line]:
    """How often each traced line is come to."""
    note = directory.with_suffix(".lines")

    def run() -> None:
        counted: Counter[Line] = Counter()
        Tracer(lambda line: counted.update((line,))).start()
        work(directory, image)
        sys.settrace(None)
        note.write_text(json.dumps([[*line, count] for line, count in counted.items()]))

    if forked(run):
        raise SystemExit("nothing is killed yet, and it does not work")
    return Counter({(name, line): count for name, line, count in json.loads(note.read_text())})


def dies(directory: Path, image: str, line: Line, occurrence: int) -> bool:
    """Whether a child that is to die at that *occurrence* of *line* came to it. Threads do not always take turns alike."""
    left = [occurrence]

    def at(reached: Line) -> None:
        if reached == line:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        Tracer(at).start()
        work(directory, image)

    status = forked(run)
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"{line}: the child failed with status {status}")
    return os.WIFSIGNALED(status)


def is_whole(path: Path) -> bool:
    return sha256(path) == path.stem


def judge(directory: Path, image: str) -> None:
    """What is left is whole or is not there; the next process does all that is missing, and tidies up.

    Raises:
        AssertionError: it is not so.
    """
    kept = directory / "images"
    found = [path for path in kept.glob("*.*") if path.suffix != files.PARTIAL] if kept.exists() else []
    assert all(map(is_whole, found)), f"an image is not what its name says: {found}"
    path = directory / "instances" / str(INSTANCE) / disks.DISK_NAME
    if path.exists():
        judge_disk(path)
    judge_disk(work(directory, image))
    assert len([path for path in kept.glob("*.*") if is_whole(path)]) == 1
    wait_for_no_partial(directory, image)


def judge_disk(path: Path) -> None:
    qemu_img("check", "-q", path)
    assert qemu_img_info(path)["virtual-size"] == 1 << 30


def wait_for_no_partial(directory: Path, image: str) -> None:
    """A conversion that goes on for a moment without its parent keeps its file, until the next start finds it gone."""
    until = time.monotonic() + 10
    while left := list(directory.rglob(f"*{files.PARTIAL}")):
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.01)
        work(directory, image)


def main() -> None:
    directory, image = Path(sys.argv[1]), sys.argv[2]
    counted, died = lines_of(directory / "whole", image), 0
    for line, count in counted.items():
        for occurrence in sorted({1, count}):
            scene = directory / "scene"
            scene.mkdir()
            if dies(scene, image, line, occurrence):
                died += 1
            try:
                judge(scene, image)
            except AssertionError as error:
                raise SystemExit(f"after a death at {line[0]}:{line[1]}, the {occurrence}. time: {error}") from error
            shutil.rmtree(scene)
    print(f"{died} of {sum(2 if count > 1 else 1 for count in counted.values())} died")


if __name__ == "__main__":
    main()
