"""The options of the verbs that look on: ``events``, ``wait``, ``top``."""

from __future__ import annotations

from eschedule.command_line.parser import Verbs, instances, json_option, selector, verb


def add_events(verbs: Verbs) -> None:
    parser = verb(
        verbs, "events", "say what happened to an instance, on a host or in the whole cluster, who did it and why",
        "eschedule events web-1 --since 1h",
        "eschedule events -f",
        "eschedule events --host node2 -o json",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument(
        "instance", metavar="NAME|UUID", nargs="?", help="of this one; a destroyed one is still known by its former name"
    )
    selector(parser)
    parser.add_argument("--host", metavar="HOST", help="what became of this host, and of instances on it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on, until Ctrl-C")
    parser.add_argument("--since", metavar="TIME", help="not older than this: 90s, 5m, 1h, 7d")
    parser.add_argument("--limit", metavar="N", help="the last N only (default: 100, at most 10000)")
    json_option(parser)


def add_wait(verbs: Verbs) -> None:
    parser = verb(
        verbs, "wait", "wait until instances are as a state says, whoever sees to that",
        "eschedule wait web-1 web-2 --for ready --timeout 5m",
    )  # fmt: skip
    parser.mixes = True
    instances(parser)
    parser.add_argument(
        "--for", metavar="STATE", dest="goal", default="running",
        help="running (the default), stopped, paused, suspended, ready (the guest says so itself), healthy (running, and its"
        " host notes nothing against it) or gone",
    )  # fmt: skip
    parser.add_argument("--timeout", metavar="TIME", help="at most so long: 60s, 5m (default: wait_seconds of schedule.yaml)")


def add_top(verbs: Verbs) -> None:
    parser = verb(
        verbs, "top", "show what instances use now: CPU, memory, disk and network; q leaves",
        "eschedule top -l app=web --sort memory",
        "eschedule top --host node1 --once -o json",
    )  # fmt: skip
    parser.add_argument("--host", metavar="HOST", help="those on this host only")
    selector(parser)
    parser.add_argument("--sort", metavar="WHAT", default="cpu", help="cpu (the default), memory, disk or net")
    parser.add_argument("-n", metavar="N", dest="times", help="leave after N times (default: never on a terminal, else once)")
    parser.add_argument("--once", action="store_true", help="like -n 1; two answers of each host, a second apart")
    json_option(parser)
