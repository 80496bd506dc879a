"""The options of ``key``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, json_option, verb


def add_key(verbs: Verbs) -> None:
    parser = verb(
        verbs, "key", "keep public ssh keys under names, for --key", "eschedule key add alice ~/.ssh/id_ed25519.pub"
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="add|list|show|rm", parser_class=Parser, required=True)
    add = verb(actions, "add", "keep the public keys of a file under a name", "ssh-add -L | eschedule key add alice")
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", metavar="FILE", nargs="?", default="-", help="of public keys; - (the default) is standard input")
    add.add_argument("--replace", action="store_true", help="in place of what that name has, if any")
    json_option(verb(actions, "list", "list the keys that are kept", "eschedule key list"))
    show = verb(actions, "show", "print the keys of a name, as in authorized_keys", "eschedule key show alice")
    show.add_argument("name", metavar="NAME")
    json_option(show)
    remove = verb(actions, "rm", "keep a name's keys no more; instances that have them keep them", "eschedule key rm alice")
    remove.add_argument("name", metavar="NAME")
