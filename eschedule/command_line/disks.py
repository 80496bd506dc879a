"""The options of the verbs that are about an instance's disk: ``snapshot`` and ``rebuild``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, instances, json_option, reason, sure, verb, waiting


def add_snapshot(verbs: Verbs) -> None:
    parser = verb(
        verbs, "snapshot", "take snapshots of an instance's disk, list and remove them, go back to one",
        "eschedule snapshot create web-1 before-upgrade",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="create|list|rm|revert", parser_class=Parser, required=True)
    create = verb(
        actions, "create", "take a snapshot of the disk; a guest that runs goes on",
        "eschedule snapshot create web-1 before-upgrade",
    )  # fmt: skip
    create.add_argument("instance", metavar="NAME|UUID")
    create.add_argument("name", metavar="SNAPSHOT", nargs="?", help="what it is called (default: the time)")
    create.add_argument("--request-id", metavar="TEXT", help="a repeat with the same text takes no second one")
    _answer(create)
    reason(create)
    json_option(create)
    listing = verb(actions, "list", "list the snapshots, and what they take", "eschedule snapshot list web-1")
    listing.add_argument("instance", metavar="NAME|UUID")
    _answer(listing)
    json_option(listing)
    remove = verb(actions, "rm", "remove a snapshot; the disk stays as it is", "eschedule snapshot rm web-1 before-upgrade")
    _named(remove)
    _answer(remove)
    reason(remove)
    revert = verb(
        actions, "revert", "throw away what was written since a snapshot; the guest is stopped hard, and started again",
        "eschedule snapshot revert web-1 before-upgrade",
    )  # fmt: skip
    _named(revert)
    sure(revert)
    waiting(revert, "it")


def add_rebuild(verbs: Verbs) -> None:
    parser = verb(
        verbs, "rebuild", "make an instance's disk anew, its data lost; name, uuid, addresses, keys and claim stay",
        "eschedule rebuild web-1 --image debian-13\n  eschedule rebuild -l app=web --yes",
    )  # fmt: skip
    instances(parser)
    parser.add_argument(
        "--image", metavar="IMAGE", help="of another image: name, URL or path as for create (default: the same)"
    )
    parser.add_argument("--checksum", metavar="ALGORITHM:HEX", help="what its bytes must come to")
    sure(parser)
    waiting(parser, "it")


def _named(parser: Parser) -> None:
    parser.add_argument("instance", metavar="NAME|UUID")
    parser.add_argument("name", metavar="SNAPSHOT")


def _answer(parser: Parser) -> None:
    parser.add_argument("--wait-seconds", metavar="N", help="wait at most so long for its host's answer (default and most: 50)")
