"""Has disk images fetched that were damaged or made up by dice: ``python -m tests.support.hostile_images DIRECTORY SEED COUNT``.

All of it is in the way: the probe, the unpackers, the readers of QEMU in their cage. Each image is taken, or refused with an error
of ours, within a time; the memory of this process is bounded, so that whoever wants more of it fails. Prints how many were taken and
refused, as JSON; with a traceback and the number of the image it exits where anything else happens. The same seed makes the same
images.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import resource
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from common.config import ImagesConfig
from common.errors import ImageInvalid, InvalidSpec
from common.model import ImageRef
from ecompute.images import ImageCache
from tests.support.disk_images import make_qcow2, make_raw, qemu_img, sha256
from tests.support.packing import zstd

MOST_MEMORY_BYTES = 1 << 30  # of address space; Python with its libraries and threads takes a third of it
MOST_SECONDS = 30.0  # for one image, on a machine with other work
KINDS = {
    "vmdk": ("vmdk", ""), "vmdk-stream": ("vmdk", "subformat=streamOptimized"), "vhdx": ("vhdx", ""), "vdi": ("vdi", ""),
    "vhd": ("vpc", "force_size=on"), "vhd-fixed": ("vpc", "subformat=fixed,force_size=on"),
}  # fmt: skip
PACKINGS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


def originals(directory: Path) -> dict[str, bytes]:
    """A good image of each kind, small."""
    raw = make_raw(directory / "raw", size_mib=2)
    made = {"raw": raw, "qcow2": make_qcow2(directory / "qcow2"), "qcow2-old": directory / "qcow2-old"}
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", raw, made["qcow2-old"])
    for name, (image_format, options) in KINDS.items():
        made[name] = directory / name
        qemu_img("convert", "-f", "raw", "-O", image_format, *(["-o", options] if options else []), raw, made[name])
    return {name: path.read_bytes() for name, path in made.items()}


def damaged(dice: random.Random, content: bytes) -> bytes:
    """*content* with a few edits, most of them where formats have their headers; sometimes cut off, sometimes only its beginning."""
    changed = bytearray(content)
    if dice.random() < 0.1:
        changed[dice.choice((4, 8, 64, 512)) :] = dice.randbytes(dice.randrange(1, 100_000))
    for _ in range(dice.randrange(0, 9)):
        reach = dice.choice((128, 512, 4096, 65536, len(changed)))
        at = dice.randrange(max(1, min(reach, len(changed))))
        at = max(0, len(changed) - 1 - at) if dice.random() < 0.2 else at  # footers
        length = dice.choice((1, 2, 4, 8, 16))
        edit = dice.choice((dice.randbytes(length), b"\xff" * length, bytes(length), b"\x7f" + b"\xff" * (length - 1)))
        changed[at : at + length] = edit
    if dice.random() < 0.2:
        del changed[dice.randrange(len(changed)) :]
    return bytes(changed)


def image(dice: random.Random, good: dict[str, bytes]) -> tuple[str, bytes]:
    kind = dice.choice(sorted(good))
    content = damaged(dice, good[kind])
    if dice.random() < 0.3:
        packing = dice.choice(sorted(PACKINGS))
        content = PACKINGS[packing](content)
        return f"{kind}.{packing}", damaged(dice, content) if dice.random() < 0.5 else content
    return kind, content


def outcome(cache: ImageCache, path: Path) -> str:
    began = time.monotonic()
    try:
        kept = cache.fetch(ImageRef(str(path)), progress=lambda *_: None, is_cancelled=lambda: False)
    except (ImageInvalid, InvalidSpec) as error:
        answer = error.reason
        assert str(error).startswith("image "), error
    else:
        answer = "taken"
        assert sha256(kept.path) == kept.digest
        kept.path.unlink()
    took = time.monotonic() - began
    assert took < MOST_SECONDS, f"it took {took:.1f} s"
    return answer


def main() -> None:
    directory, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (directory / "good").mkdir()
    good = originals(directory / "good")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    found: Counter[str] = Counter()
    for number in range(count):
        kind, content = image(random.Random(f"{seed}-{number}"), good)
        path = directory / "image"
        path.write_bytes(content)
        try:
            cache = ImageCache(directory / "images", ImagesConfig(max_size_gib=1))
            found[outcome(cache, path)] += 1
            left = [file.name for file in (directory / "images").iterdir() if file.name != "index"]
            assert left == [], f"left behind: {left}"
        except BaseException:
            print(f"image {number} of seed {seed}, a {kind}, is in {path}", file=sys.stderr)
            raise
        shutil.rmtree(directory / "images")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
