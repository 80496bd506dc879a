"""The options of ``volume``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, json_option, sure, verb, waiting


def add_volume(verbs: Verbs) -> None:
    parser = verb(
        verbs, "volume", "disks that outlive instances: create, attach, detach, list, show, remove",
        "eschedule volume create data --size 10 --host node1",
    )  # fmt: skip
    actions = parser.add_subparsers(
        dest="action", metavar="create|list|show|attach|detach|rm", parser_class=Parser, required=True
    )
    _add_create(actions)
    _add_attach(actions)
    detach = verb(
        actions, "detach", "take a volume out of its instance, also while that runs", "eschedule volume detach data"
    )  # fmt: skip
    _named(detach)
    waiting(detach, "it")
    json_option(detach)
    json_option(verb(actions, "list", "list all volumes", "eschedule volume list"))
    show = verb(actions, "show", "show a volume: where it is, who has it", "eschedule volume show data")
    _named(show)
    json_option(show)
    remove = verb(actions, "rm", "remove a volume and all that is in it, for good", "eschedule volume rm data")
    _named(remove)
    sure(remove)
    waiting(remove, "its end", has_reason=False)


def _named(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME|UUID")


def _add_create(actions: Verbs) -> None:
    parser = verb(
        actions, "create", "make an empty volume on a host that has the room", "eschedule volume create data --size 10"
    )
    parser.add_argument("name", metavar="NAME", help="1 to 63 of a-z, 0-9 and -; unique among volumes")
    parser.add_argument("--size", metavar="GB", required=True, help="in GiB, as DISK_GB counts")
    parser.add_argument("--host", metavar="HOST", help="the host's name or provider; instances there can have it")
    parser.add_argument("--uuid", help="the volume's uuid; the same request with the same uuid makes one volume")
    parser.add_argument("--request-id", metavar="TEXT", help="like --uuid, with a text of your own")
    waiting(parser, "the volume", has_reason=False)
    json_option(parser)


def _add_attach(actions: Verbs) -> None:
    parser = verb(
        actions, "attach", "give a volume to an instance of the same host, also while it runs",
        "eschedule volume attach data web-1",
    )  # fmt: skip
    _named(parser)
    parser.add_argument("instance", metavar="INSTANCE", help="its name or uuid")
    waiting(parser, "it")
    json_option(parser)
