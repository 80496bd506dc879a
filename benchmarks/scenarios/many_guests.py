"""1 to 32 guests asked for at once, until libvirt says that the last one runs, and destroyed at once, until nothing is left.

Against the floor: ``qemu-img create`` and ``createXML`` of the same domains, ``destroy`` and ``unlink``, with the parallelism
that ecompute has: twice ``builder.starts_at_once`` (4) threads, of which half are in a start at one time. Ours begins with
the request, one ``create_all`` of a warm client, so that candidates, claims, specs, addresses, metadata and statuses are all in
it; its destruction with N changed specs. The guests have 32 MiB and a boot sector for a system.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.guests import Floor, GuestHost, guest_host
from benchmarks.measure import Bench, Figure, Outcome, Plot, ratio, turn_about
from common.config import BuilderConfig
from tests.support.small_guest import make_small_guest

COUNTS = (1, 2, 4, 8, 16, 32)
CHECKED = 8
AIMED = 16
RUNS_OF_MANY = 3  # of more guests than are checked: each takes half a minute
AT_MOST = 1.3
STARTS = BuilderConfig().starts_at_once
THREADS = max(2 * STARTS, os.cpu_count() or 1)  # as ``ecompute/agent.py`` has it
RUN, GONE = ("running, ours", "running, floor"), ("gone, ours", "gone, floor")


def run(bench: Bench) -> Outcome:
    image = make_small_guest(bench.directory / "guest.raw")
    with guest_host(bench.directory) as host:
        floor = host.floor(image)
        counts = (CHECKED,) if bench.is_check else COUNTS
        samples = {count: _sampled(bench, host, floor, image, count) for count in counts}
    figures = [figure for count in counts if count in (CHECKED, AIMED) for figure in _figures(count, samples[count])]
    return Outcome(figures, () if bench.is_check else _plots(samples))


def _sampled(bench: Bench, host: GuestHost, floor: Floor, image: Path, count: int) -> dict[str, list[float]]:
    runs = 2 if bench.is_check else min(bench.runs, RUNS_OF_MANY) if count > CHECKED else bench.runs
    bench.say(f"{count} at once, {runs} times")
    gone: dict[str, list[float]] = defaultdict(list)

    def ours() -> float:
        host.wait_at_rest()
        made = host.create(host.request(image, count=count))
        gone[GONE[0]].append(host.destroy(made.instances))
        return made.running_seconds

    def bare() -> float:
        host.wait_at_rest()
        made = floor.create(count, threads=THREADS, starts=STARTS)
        gone[GONE[1]].append(floor.destroy(made.instances, threads=THREADS))
        return made.running_seconds

    samples = turn_about(runs, **{RUN[0]: ours, RUN[1]: bare})
    return {**samples, **{label: seconds[1:] for label, seconds in gone.items()}}  # the first of each does not count


def _figures(count: int, samples: Mapping[str, Sequence[float]]) -> list[Figure]:
    said = {"running": (f"{count} guests at once until QEMU runs", RUN), "gone": (f"{count} guests destroyed at once", GONE)}
    return [
        Figure(
            f"many-guests.{what}-{count}", says, ratio(samples, *labels), at_most=AT_MOST, margin=0.3,
            samples={label: samples[label] for label in labels},
        )
        for what, (says, labels) in said.items()
    ]  # fmt: skip


def _plots(samples: Mapping[int, Mapping[str, Sequence[float]]]) -> list[Plot]:
    counts = list(samples)
    lines = {
        "until they run": [ratio(samples[count], *RUN) for count in counts],
        "until they are gone": [ratio(samples[count], *GONE) for count in counts],
    }
    return [Plot("many-guests", "Guests at once, against the floor", "guests", "times the floor", counts, lines, is_log_x=True)]
