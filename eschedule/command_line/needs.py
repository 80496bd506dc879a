"""The options that say what an instance needs in people's words, which several verbs share."""

from __future__ import annotations

from eschedule.command_line.parser import Parser


def amounts(parser: Parser, when: str = "", disk_when: str = "") -> None:
    """How much; *when* is added to what the help says of CPUs and memory, *disk_when* to what it says of the disk."""
    parser.add_argument("--cpus", metavar="N", help=f"CPUs{when}")
    parser.add_argument("--memory", metavar="SIZE", help=f"memory, as 4G or 512M{when}")
    parser.add_argument("--disk", metavar="SIZE", help=f"disk, as 20G{disk_when}")


def needs(parser: Parser) -> None:
    """How much, and of what kind of host; beside a raw query, or in its place."""
    amounts(parser)
    parser.add_argument("--trait", metavar="TRAIT", action="append", help="which its host must have; may be repeated")
    parser.add_argument("--not-trait", metavar="TRAIT", action="append", help="which its host must not have; may be repeated")
    parser.add_argument("--host", metavar="NAME", help="the host that it is to be on")
    parser.add_argument("--zone", metavar="NAME", help="the zone of its host: hosts with the label zone=NAME (host label)")
