"""The options of the verbs for hosts and for the whole: ``hosts``, ``host``, ``audit``, ``doctor``, ``completion``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, json_option, reason, verb, waiting


def add_hosts(verbs: Verbs) -> None:
    json_option(verb(verbs, "hosts", "list the hosts, their state, and how much of them is used", "eschedule hosts"))


def add_host(verbs: Verbs) -> None:
    parser = verb(verbs, "host", "add, remove, disable and mark hosts", "eschedule host disable node2 --reason 'new disks'")
    actions = parser.add_subparsers(
        dest="action", metavar="token|add|remove|show|disable|enable|trait|label", parser_class=Parser, required=True
    )
    verb(
        actions,
        "token",
        "print what ecompute join needs on a new host",
        "eschedule host token | ssh root@node2 ecompute join -",
    )
    add = verb(
        actions, "add", "have a machine join over ssh, and wait until it is Ready",
        "eschedule host add root@node2 --package dist/etcd-compute_0.1.0_amd64.deb",
    )  # fmt: skip
    add.add_argument("target", metavar="USER@HOST", help="as ssh takes it; root, or somebody whom sudo asks nothing")
    add.add_argument("--package", metavar="FILE.deb", help="installed there where ecompute is missing")
    add.add_argument("--ssh-option", metavar="NAME=VALUE", action="append", help="of ssh_config(5); may be repeated")
    add.add_argument("--force", action="store_true", help="have it leave the services of another compute.yaml for these")
    add.add_argument("--wait-seconds", metavar="N", help="wait at most so long for Ready (default: 180)")
    reason(add)
    remove = verb(actions, "remove", "take a host out that has no instances, dead or alive", "eschedule host remove node2")
    remove.add_argument("name", metavar="NAME|PROVIDER")
    remove.add_argument("--wait-seconds", metavar="N", help="wait at most so long for it to leave (default: 60)")
    reason(remove)
    _add_settings(actions)


def _add_settings(actions: Verbs) -> None:
    show = verb(actions, "show", "show all about one host: inventory, traits, guests, what is set", "eschedule host show node2")
    show.add_argument("name", metavar="NAME|PROVIDER")
    json_option(show)
    off = verb(
        actions, "disable", "have a host take no new guests; those that it has run on",
        "eschedule host disable node2 --reason 'new disks'",
    )  # fmt: skip
    on = verb(actions, "enable", "have a host take guests again", "eschedule host enable node2")
    traits = verb(actions, "trait", "give a host traits of your own, or take them", "eschedule host trait add node2 CUSTOM_GPU")
    labels = verb(
        actions,
        "label",
        "set labels of a host, or take them; for people and programs, and requests ask for zone=NAME (--zone)",
        "eschedule host label node2 zone=a rack=7 row-",
    )
    off.add_argument("name", metavar="NAME|PROVIDER")
    on.add_argument("name", metavar="NAME|PROVIDER")
    traits.add_argument("trait_action", metavar="add|rm", choices=("add", "rm"))
    traits.add_argument("name", metavar="NAME|PROVIDER")
    traits.add_argument("traits", metavar="TRAIT", nargs="+", help="requests ask for it by required=TRAIT, or required=!TRAIT")
    for parser in (off, on, traits, labels):
        waiting(parser, "it")
    labels.add_argument("name", metavar="NAME|PROVIDER")
    labels.add_argument("labels", metavar="NAME=VALUE|NAME-", nargs="+", help="to set, or to take away")


def add_audit(verbs: Verbs) -> None:
    parser = verb(
        verbs, "audit", "compare etcd, Placement and the hosts; exit code 0 only when all agrees", "eschedule audit --fix"
    )  # fmt: skip
    parser.add_argument("hosts", metavar="HOST", nargs="*", help="look at these hosts only, by name or provider")
    parser.add_argument("--fix", action="store_true", help="cure what is safe; no guest and no disk is ever taken away")
    parser.add_argument("--wait-seconds", metavar="N", help="wait at most so long for the hosts (default: 10)")
    parser.add_argument(
        "--orphan-seconds", metavar="N",
        help="with --fix, release a claim that nobody has wanted for so long (default: 60; at least 40)",
    )  # fmt: skip
    json_option(parser)


def add_doctor(verbs: Verbs) -> None:
    parser = verb(
        verbs, "doctor", "check what this client needs: etcd, Placement, clock, hosts; exit code 1 with a failure",
        "eschedule doctor",
    )  # fmt: skip
    parser.add_argument("--fix", action="store_true", help="remove what earlier checks left in Placement, then look again")
    json_option(parser)


def add_completion(verbs: Verbs) -> None:
    example = "source <(eschedule completion bash)"
    parser = verb(verbs, "completion", "print what a shell needs to complete commands, options and names", example)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
