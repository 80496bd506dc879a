"""eschedule as a process: what a person waits for, against a bare Python and the least Python that asks etcd the same.

Against real etcd and Placement with a stand-in for the host, which answers at once, and ten instances. The floors are
``python -c pass``; a script of three lines that reads the instances through the same client library; and, for ``create``, that
script's time together with that of the same request by the Python API of a process that is warm.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from benchmarks.measure import Bench, Figure, Outcome, ratio, seconds_of, turn_about
from common.model import ImageRef
from eschedule import changes
from eschedule.request import Request
from eschedule.scheduler import Scheduler
from tests.support.eschedule import IMAGE, QUERY, Site
from tests.support.etcd import EtcdServer
from tests.support.placement import PlacementServer
from tests.support.processes import VENV_BIN, as_a_child

INSTANCES = 10
RUNS_FACTOR = 3  # processes are short: more of them cost little and steady the median
SCRIPT = """\
import etcd3
for value, metadata in etcd3.client(host={host!r}, port={port}).get_prefix({prefix!r}):
    print(metadata.key, value)
"""
RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}


def run(bench: Bench) -> Outcome:
    with _site(bench.directory) as site:
        names = count()
        scheduler = Scheduler(site.store, site.placement, site.keys, policy="spread")
        for _ in range(INSTANCES):
            _create(scheduler, next(names))
        program = [str(VENV_BIN / "eschedule")]
        python = [str(VENV_BIN / "python"), "-c"]
        script = SCRIPT.format(host="127.0.0.1", port=site.etcd.client_port, prefix=site.prefix)
        bench.say(f"{bench.runs * RUNS_FACTOR} processes of each kind, turn and turn about")
        samples = turn_about(
            bench.runs * RUNS_FACTOR,
            **{
                "bare Python": _process(site, [*python, "pass"]),
                "least client": _process(site, [*python, script]),
                "--help": _process(site, [*program, "--help"]),
                "list": _process(site, [*program, "list"]),
                "show": _process(site, [*program, "show", "vm-0"]),
                "create": lambda: _create_by_process(site, program, next(names)),
                "warm API": lambda: _create_by_api(site, scheduler, next(names)),
            },
        )
    return Outcome(_figures(samples, is_check=bench.is_check))


def _figures(samples: Mapping[str, Sequence[float]], *, is_check: bool) -> list[Figure]:
    together = {
        **samples,
        "floor of create": [a + b for a, b in zip(samples["least client"], samples["warm API"], strict=True)],
    }
    ratios = [
        _ratio("help", "--help against bare Python", together, "--help", "bare Python", margin=0.5),
        _ratio("list", "list against the least client", together, "list", "least client", margin=0.25),
        _ratio("show", "show against the least client", together, "show", "least client", margin=0.25),
        _ratio("create", "create against the least client and the warm API", together, "create", "floor of create", margin=0.3),
    ]
    if is_check:
        return ratios
    return [
        *ratios,
        _difference("help-beyond", "--help beyond bare Python", samples, "--help", "bare Python", at_most=120),
        _difference("list-beyond", "list beyond bare Python", samples, "list", "bare Python", at_most=250),
        _difference("show-beyond", "show beyond bare Python", samples, "show", "bare Python", at_most=250),
        _difference("create-beyond", "create as a process beyond the warm API", samples, "create", "warm API", at_most=300),
    ]


def _ratio(name: str, says: str, samples: Mapping[str, Sequence[float]], ours: str, floor: str, *, margin: float) -> Figure:
    used = {label: samples[label] for label in (ours, floor)}
    return Figure(f"command-line.{name}", says, ratio(samples, ours, floor), margin=margin, samples=used)


def _difference(
    name: str, says: str, samples: Mapping[str, Sequence[float]], ours: str, floor: str, *, at_most: float
) -> Figure:
    value = (statistics.median(samples[ours]) - statistics.median(samples[floor])) * 1000
    used = {label: samples[label] for label in (ours, floor)}
    return Figure(f"command-line.{name}", says, value, "ms", at_most=at_most, samples=used)


# --- What is timed -------------------------------------------------------------------------------------------------------


def _process(site: Site, command: Sequence[str]) -> Callable[[], float]:
    return lambda: seconds_of(lambda: _run(site, command))


def _run(site: Site, command: Sequence[str]) -> None:
    """Run *command* to its end, as from the folder with the site's schedule.yaml."""
    done = subprocess.run(
        command, cwd=site.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=as_a_child
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _create_by_process(site: Site, program: Sequence[str], number: int) -> float:
    name = f"vm-{number}"
    took = seconds_of(lambda: _run(site, [*program, "create", QUERY, IMAGE, "--name", name, "--no-wait"]))
    _destroy(site, name)
    return took


def _create_by_api(site: Site, scheduler: Scheduler, number: int) -> float:
    took = seconds_of(lambda: _create(scheduler, number))
    _destroy(site, f"vm-{number}")
    return took


def _create(scheduler: Scheduler, number: int) -> None:
    scheduler.create(Request(query=QUERY, resources=RESOURCES, name=f"vm-{number}", image=ImageRef(IMAGE)))


def _destroy(site: Site, name: str) -> None:
    changes.change(site.store, site.keys, site.uuid_of(name), changes.destroyed)


@contextmanager
def _site(directory: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        etcd = EtcdServer(directory / "etcd")
        stack.callback(etcd.kill)
        etcd.start()
        placement = PlacementServer(directory / "placement")
        stack.callback(placement.kill)
        placement.start()
        site = Site(directory, etcd, placement)
        stack.callback(site.close)
        site.host("host-1", vcpus=1000, memory_mib=1_000_000, disk_gib=10_000)
        yield site
