"""The options of the verbs that ask for room without taking it: ``capacity``, ``explain``."""

from __future__ import annotations

from eschedule.command_line.needs import needs
from eschedule.command_line.parser import EXAMPLE, Verbs, json_option, verb

_QUERY = "what one needs, as a query string of Placement's"


def add_capacity(verbs: Verbs) -> None:
    parser = verb(
        verbs,
        "capacity",
        "say how many more of a request fit, where, and what stops the next",
        f"eschedule capacity '{EXAMPLE}'\n  eschedule capacity --cpus 2 --memory 4G --disk 20G --zone a",
    )
    parser.mixes = True
    parser.add_argument("query", metavar="'resources=…'", nargs="?", help=_QUERY)
    needs(parser)
    json_option(parser)


def add_explain(verbs: Verbs) -> None:
    parser = verb(
        verbs, "explain", "say of each host whether it could take a request, and why not; takes nothing",
        f"eschedule explain '{EXAMPLE}&required=HW_CPU_X86_AVX2'\n"
        "  eschedule explain --cpus 2 --memory 4G --disk 20G --trait CUSTOM_GPU",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("query", metavar="'resources=…'", nargs="?", help=_QUERY)
    needs(parser)
    json_option(parser)
