"""The options of the verbs that look at, change and end instances."""

from __future__ import annotations

from eschedule.command_line.needs import amounts
from eschedule.command_line.parser import DRIVE, Parser, Verbs, instances, json_option, reason, selector, sure, verb, waiting


def reaching(parser: Parser) -> None:
    """How a guest is told of itself, and who may reach it."""
    parser.add_argument(
        "--metadata",
        metavar="ACCESS",
        help="who may read it at 169.254.169.254: optional, required (with a token only) or off (default: optional)",
    )
    parser.add_argument(
        "--metadata-hop-limit", metavar="N", help="how many hops an answer with a token may go (default: 1; containers need 2)"
    )
    drive = parser.add_mutually_exclusive_group()
    drive.add_argument(
        DRIVE, metavar="FORM", help="its metadata as a disk, too: openstack (without FORM), nocloud, or auto where HTTP fails"
    )
    drive.add_argument("--no-config-drive", dest="config_drive", action="store_const", const="none", help="without that disk")
    parser.add_argument(
        "--allow", metavar="RULES", action="append",
        help="who may reach it: tcp:PORT[-PORT], udp:…, icmp, all, each with @CIDR where only those may; commas between; none",
    )  # fmt: skip
    parser.add_argument("--allow-all", action="store_true", help="everybody may reach it")


def add_list(verbs: Verbs) -> None:
    parser = verb(verbs, "list", "list all instances", "eschedule list -l app=web -o wide", aliases=("ls",))
    selector(parser)
    json_option(parser)


def add_show(verbs: Verbs) -> None:
    parser = verb(verbs, "show", "show all about one instance", "eschedule show web-1")
    parser.add_argument("instance", metavar="NAME|UUID", nargs="?")
    selector(parser)
    json_option(parser)


def add_destroy(verbs: Verbs) -> None:
    parser = verb(
        verbs,
        "destroy",
        "destroy instances with their disks, for good",
        "eschedule destroy web-1 web-2\n  eschedule destroy -l app=web,tier!=db",
    )
    instances(parser)
    sure(parser)
    waiting(parser, "the end")


def add_stop(verbs: Verbs) -> None:
    parser = verb(
        verbs, "stop", "shut guests down; disk, address and claim stay",
        "eschedule stop web-1 web-2", "eschedule stop web-3 --force",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="pull the plug instead of asking the guest to shut down first")
    instances(parser)
    waiting(parser, "the stop")


def add_start(verbs: Verbs) -> None:
    parser = verb(verbs, "start", "start guests that are down", "eschedule start web-1")
    instances(parser)
    waiting(parser, "the start")


def add_reboot(verbs: Verbs) -> None:
    parser = verb(verbs, "reboot", "reboot guests; those that are down are started", "eschedule reboot web-1 --hard")
    parser.add_argument("--hard", action="store_true", help="pull the plug instead of asking the guest to shut down first")
    instances(parser)
    waiting(parser, "the reboot")


def add_pause(verbs: Verbs) -> None:
    parser = verb(
        verbs, "pause", "stop the CPUs of guests where they are; they keep their memory", "eschedule pause web-1"
    )  # fmt: skip
    instances(parser)
    waiting(parser, "the pause")


def add_unpause(verbs: Verbs) -> None:
    parser = verb(verbs, "unpause", "let paused guests go on", "eschedule unpause web-1")
    instances(parser)
    waiting(parser, "it")


def add_suspend(verbs: Verbs) -> None:
    parser = verb(
        verbs, "suspend", "save the memory of guests to files of their hosts, and free it; their claims stay",
        "eschedule suspend web-1 web-2",
    )  # fmt: skip
    instances(parser)
    waiting(parser, "it")


def add_resume(verbs: Verbs) -> None:
    parser = verb(verbs, "resume", "let suspended guests go on from their saved memory", "eschedule resume web-1 web-2")
    instances(parser)
    waiting(parser, "it")


def add_rename(verbs: Verbs) -> None:
    parser = verb(
        verbs, "rename", "give an instance another name; what the guest calls itself stays", "eschedule rename web-1 shop-1"
    )  # fmt: skip
    parser.add_argument("instance", metavar="NAME|UUID")
    parser.add_argument("name", metavar="NEW", help="a name that no instance has")
    reason(parser)


def add_protect(verbs: Verbs) -> None:
    parser = verb(verbs, "protect", "keep instances from being destroyed or rebuilt", "eschedule protect db-1 db-2")
    instances(parser)
    reason(parser)


def add_unprotect(verbs: Verbs) -> None:
    parser = verb(verbs, "unprotect", "let instances be destroyed and rebuilt again", "eschedule unprotect db-1")
    instances(parser)
    reason(parser)


def add_set(verbs: Verbs) -> None:
    parser = verb(
        verbs, "set", "change what a guest is told and who may reach it, without a restart",
        "eschedule set web-1 --key alice --key ~/.ssh/id_ed25519.pub --allow tcp:22,icmp",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("instance", metavar="NAME|UUID", nargs="?")
    selector(parser)
    keys, user_data = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    keys.add_argument("--key", metavar="FILE|NAME", action="append", help="these public ssh keys in place of all it has")
    keys.add_argument("--no-keys", action="store_true", help="no ssh key any more")
    user_data.add_argument("--user-data", metavar="FILE", help="in place of what it has; at most 64 KiB")
    user_data.add_argument("--no-user-data", action="store_true", help="no user data any more")
    reaching(parser)
    waiting(parser, "the change")


def add_label(verbs: Verbs) -> None:
    parser = verb(
        verbs, "label", "set labels of instances, or take them away; people and selectors (-l) find instances by them",
        "eschedule label web-1 web-2 app=web tier=front old-\n  eschedule label -l app=web tier=front",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument(
        "whom_and_labels", metavar="NAME|UUID|KEY=VALUE|KEY-", nargs="+", help="instances, and labels to set or take away"
    )
    selector(parser)
    reason(parser)


def add_unlabel(verbs: Verbs) -> None:
    parser = verb(
        verbs, "unlabel", "take labels of an instance away",
        "eschedule unlabel web-1 tier old\n  eschedule unlabel -l app=web tier",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument(
        "whom_and_labels", metavar="[NAME|UUID] KEY", nargs="+", help="the instance, unless -l chooses some, and labels"
    )
    selector(parser)
    reason(parser)


def add_resize(verbs: Verbs) -> None:
    parser = verb(
        verbs, "resize", "give an instance more or less CPU and memory, or a larger disk, on the host where it is",
        "eschedule resize web-1 --cpus 4 --memory 4G --disk 40G --reboot\n  eschedule resize -l app=web --memory 4G",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("whom_and_query", metavar="NAME|UUID|resources=…", nargs="*",
        help="instances, and amounts as in create: 'resources=VCPU:4,DISK_GB:40'",
    )  # fmt: skip
    selector(parser)
    amounts(parser, ", from its next start on", ", at once, while it runs; never smaller")
    parser.add_argument("--vcpus", metavar="N", help="like --cpus")
    parser.add_argument("--memory-mb", metavar="MB", help="like --memory, in MiB")
    parser.add_argument("--disk-gb", metavar="GB", help="like --disk, in GiB")
    parser.add_argument("--reboot", action="store_true", help="reboot it, so that all of it holds at once")
    parser.add_argument("--hard", action="store_true", help="with --reboot: pull the plug instead of asking the guest first")
    waiting(parser, "the change")


def add_port_forward(verbs: Verbs) -> None:
    parser = verb(
        verbs, "port-forward", "have ports of its host lead to a guest; list them",
        "eschedule port-forward web-1 8080:80 53:53/udp --rm 2222",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("instance", metavar="NAME|UUID")
    parser.add_argument(
        "ports",
        metavar="HOSTPORT:GUESTPORT",
        nargs="*",
        help="to add, with /udp behind it for UDP; without any, and without --rm, it lists",
    )
    parser.add_argument("--rm", metavar="HOSTPORT[/udp]", action="append", help="to take away; may be repeated")
    waiting(parser, "the change")
    json_option(parser)


def add_adopt(verbs: Verbs) -> None:
    parser = verb(
        verbs, "adopt", "take over guests that etcd has lost, or remembers otherwise than they are", "eschedule adopt web-1"
    )  # fmt: skip
    parser.add_argument("instances", metavar="NAME|UUID", nargs="*")
    parser.add_argument("--all", action="store_true", help="every guest that etcd has lost")
    parser.add_argument("--spec", action="store_true", help="of a guest whose request in etcd is older: what etcd says counts")
    parser.add_argument("--domain", action="store_true", help="of such a guest: what the guest is counts")
    parser.add_argument("--name", metavar="NEW", help="another name, where its own is taken")
    waiting(parser, "it")
