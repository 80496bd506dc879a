"""The options of the verbs that ask for room without taking it: ``capacity``, ``explain``."""

from __future__ import annotations

from eschedule.command_line.parser import EXAMPLE, Verbs, json_option, verb

_QUERY = "what one needs, as a query string of Placement's"


def add_capacity(verbs: Verbs) -> None:
    parser = verb(
        verbs,
        "capacity",
        "say how many more of a request fit, where, and what stops the next",
        f"eschedule capacity '{EXAMPLE}'",
    )
    parser.add_argument("query", metavar="'resources=…'", help=_QUERY)
    json_option(parser)


def add_explain(verbs: Verbs) -> None:
    parser = verb(
        verbs, "explain", "say of each host whether it could take a request, and why not; takes nothing",
        f"eschedule explain '{EXAMPLE}&required=HW_CPU_X86_AVX2'",
    )  # fmt: skip
    parser.add_argument("query", metavar="'resources=…'", help=_QUERY)
    json_option(parser)
