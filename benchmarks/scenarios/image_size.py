"""The second guest of an image of 20 MB and of one of 2 GB: how large an image is must not matter once it is in the cache.

Both images have a boot sector and are full of bytes that are not zero. The first guest of each fetches it, which does not
count; then guests of either are created, turn and turn about, until libvirt says that they run. What ecompute reads meanwhile
is counted too: of an image that is there nobody computes a checksum again, and nobody copies it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from benchmarks.guests import GuestHost, guest_host
from benchmarks.measure import Bench, Figure, Outcome, ratio, seconds_of, turn_about
from tests.support.small_guest import make_small_guest

SMALL_MIB, LARGE_MIB = 20, 2000
DISK_GIB = 2
RUNS_FACTOR = 2  # a difference of one part in twenty is looked for
MOST_BYTES_READ = 1 << 20  # by ecompute for one guest; an image has twenty times as many, and more
BLOCK = bytes(range(1, 256)) * 4112  # a MiB and a little


def run(bench: Bench) -> Outcome:
    small, large = (_image(bench.directory / f"{size}.raw", size) for size in (SMALL_MIB, LARGE_MIB))
    read: dict[str, list[float]] = defaultdict(list)
    with guest_host(bench.directory) as host:
        _create(host, small, [])
        took = seconds_of(lambda: _create(host, large, []))
        bench.say(f"the first guest of {LARGE_MIB} MB took {took:.1f} s; now {bench.runs * RUNS_FACTOR} more of each")
        samples = turn_about(
            bench.runs * RUNS_FACTOR,
            small=lambda: _create(host, small, read["small, bytes read"]),
            large=lambda: _create(host, large, read["large, bytes read"]),
        )
    worst = max(value for counts in read.values() for value in counts)
    assert worst < MOST_BYTES_READ, f"ecompute read {worst} bytes for a guest of an image that it has"
    figure = Figure(
        "image-size.second", f"second guest of an image of {LARGE_MIB} MB, against one of {SMALL_MIB} MB",
        ratio(samples, "large", "small"), at_most=1.05, margin=0.15, samples={**samples, **read},
    )  # fmt: skip
    return Outcome([figure])


def _image(path: Path, size_mib: int) -> Path:
    make_small_guest(path, size_mib=size_mib)
    with path.open("r+b") as image:
        image.seek(1 << 20)
        for _ in range(size_mib - 2):
            image.write(BLOCK[: 1 << 20])
    return path


def _create(host: GuestHost, image: Path, read: list[float]) -> float:
    host.wait_at_rest()
    before = _bytes_read(host)
    made = host.create(host.request(image, disk_gib=DISK_GIB))
    read.append(_bytes_read(host) - before)
    host.destroy(made.instances)
    return made.running_seconds


def _bytes_read(host: GuestHost) -> int:
    """By ecompute since it began, from files and sockets alike."""
    ecompute = host.node.ecompute
    assert ecompute is not None, "it runs"
    counts = dict(line.split(": ") for line in Path(f"/proc/{ecompute.pid}/io").read_text().splitlines())
    return int(counts["rchar"])
