"""The command line: verbs, options, help. Knows nothing of what they do, and imports nothing that takes time.

Two short forms come before the verbs: a request (``eschedule 'resources=…'``) is ``create``, and a uuid is ``show``.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from common.errors import ConfigError
from common.text import escaped, nearest, quoted

EXAMPLE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TAKES_VALUE = ("--config",)  # of the options that may stand before the verb
_DRIVE, _DRIVE_FORMS = "--config-drive", ("auto", "openstack", "nocloud", "none")

DESCRIPTION = "Ask for virtual machines and look at them: Placement finds a host with room, etcd carries the request there."
EPILOG = f"""\
short forms:
  eschedule '{EXAMPLE}' [IMAGE]    like create
  eschedule UUID                                                  like show

exit codes:
  0 done  1 the instance failed, or there is none  2 usage or configuration  3 no capacity
  4 etcd or Placement did not answer, or the wait was over  5 conflict  130 interrupted

Data goes to standard output; progress and messages to standard error. `eschedule COMMAND --help` has examples.
"""


class Parser(argparse.ArgumentParser):
    """argparse with errors as one line, and as an exception of ours.

    *mixes*: its words may stand among its options, too. argparse takes those that may be missing for missing at the first
    option.
    """

    mixes = False

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.replace(chr(10), ' ')}; see: {self.prog} --help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        return super().parse_known_args(self._words_last(args or ()) if self.mixes else args, namespace)

    def _words_last(self, arguments: Sequence[str]) -> list[str]:
        words, options, rest = list[str](), list[str](), iter(arguments)
        for argument in rest:
            if argument == "--":
                return [*options, argument, *words, *rest]
            if argument == "-" or not argument.startswith("-"):
                words.append(argument)
                continue
            options.append(argument)
            action = self._option_string_actions.get(argument)  # none where it is unknown, or has its value behind a =
            if action is not None and action.nargs is None:
                options.extend(itertools.islice(rest, 1))
        return [*options, *words]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace; ``command`` is the verb, None where only ``--check-config`` was asked for.

    Raises:
        ConfigError: it is none; one line.
        SystemExit: after ``--help``, which is printed.
    """
    given = _with_verb(_with_drive_form(arguments), tuple(_VERBS))
    verb = next(iter(given), None)
    options, unknown = _parser(verb if verb in _VERBS else None).parse_known_args(given)
    if unknown:
        raise ConfigError(_unknown(options.command, unknown))
    if options.command is None and not (options.check_config or options.version):
        raise ConfigError(f"nothing was asked for; begin with: eschedule '{EXAMPLE}', or see: eschedule --help")
    return options


def _unknown(verb: str | None, words: Sequence[str]) -> str:
    """What to say of *words* that *verb* does not take."""
    said = f"unrecognized arguments: {' '.join(map(escaped, words))}"
    if verb == "set" and words[0].partition("=")[0] == "--publish":
        return f"{said}; to change ports of the host that lead to a guest, use: eschedule port-forward"
    return f"{said}; see: {' '.join(filter(None, ('eschedule', verb)))} --help"


def _with_drive_form(arguments: Sequence[str]) -> list[str]:
    """*arguments* with the form of a config drive that none was given of; argparse would take the next word for it."""
    following = (*arguments[1:], "")
    return [
        f"{_DRIVE}=openstack" if argument == _DRIVE and after not in _DRIVE_FORMS else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def _with_verb(arguments: list[str], verbs: Sequence[str]) -> list[str]:
    """*arguments* with the verb that the two short forms leave out.

    Raises:
        ConfigError: what stands where a verb belongs is none.
    """
    first = _first_word(arguments)
    if first is None or first in verbs:
        return arguments
    if any(_is_query(argument) for argument in arguments):
        return ["create", *arguments]
    if _UUID.fullmatch(first):
        return ["show", *arguments]
    near = nearest(first, verbs)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(verbs)}, and requests, which look like {EXAMPLE}"
    raise ConfigError(f"{quoted(first)} is no command; {hint}")


def _first_word(arguments: Sequence[str]) -> str | None:
    """The first argument that is neither an option nor the value of one that may stand before the verb."""
    previous = ""
    for argument in arguments:
        if previous not in _TAKES_VALUE and not argument.startswith("-"):
            return argument
        previous = argument
    return None


def _is_query(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _parser(verb: str | None) -> Parser:
    """What reads the command line; only the parser of *verb* is made, where one comes first: all of them take their time."""
    parser = Parser(
        prog="eschedule", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    _common(parser, None)
    parser.add_argument("--check-config", action="store_true", help="check the configuration, say where it is, and end")
    parser.add_argument("--version", action="store_true", help="print the version and end")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, add in _VERBS.items():
        if verb in (None, name):
            add(verbs)
    return parser


def _common(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Options that may stand before the verb and behind it."""
    parser.add_argument(
        "--config", metavar="FILE", default=default,
        help="schedule.yaml; else ./, ~/.config/etcd-compute/ and /etc/etcd-compute/ are looked into",
    )  # fmt: skip
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=False if default is None else default, help="log what is done"
    )


def _verb(verbs: argparse._SubParsersAction[Parser], name: str, help: str, example: str) -> Parser:
    parser = verbs.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    _common(parser)
    return parser


def _waiting(parser: Parser, what: str) -> None:
    parser.add_argument("--no-wait", action="store_true", help=f"return once {what} is asked for")
    parser.add_argument("--wait-seconds", metavar="N", help="wait at most so long (default: wait_seconds of schedule.yaml)")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_create(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "create", "create an instance and wait until it runs",
        f"eschedule create '{EXAMPLE}' https://images.example.org/debian.qcow2 --name web-1 --key ~/.ssh/id_ed25519.pub",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("query", metavar="'resources=…'", help="what it needs, as a query string of Placement's")
    parser.add_argument("image_argument", metavar="IMAGE", nargs="?", help="like --image")
    parser.add_argument(
        "--image", help="a registered name (eschedule image), an http(s):// or file:// URL, or an absolute path"
    )
    parser.add_argument("--checksum", metavar="sha256:HEX", help="what the image's bytes must come to; sha512: is taken too")
    parser.add_argument("--name", help="1 to 63 of a-z, 0-9 and -; unique (default: vm- and eight digits of the uuid)")
    parser.add_argument("--count", metavar="N", help="so many instances, all or none, 1 to 1000: NAME-1 … NAME-N, or {n} in it")
    parser.add_argument("--group", metavar="NAME", help="of instances that are kept apart, or together, as --policy says")
    parser.add_argument(
        "--policy", metavar="POLICY",
        help="of the group: anti-affinity (each on a host of its own; the default), affinity (all on one host), or soft-… of"
        " these, which yield where there is no other room",
    )  # fmt: skip
    parser.add_argument("--hostname", metavar="NAME", help="what the guest calls itself (default: its name)")
    parser.add_argument(
        "--key", metavar="FILE|NAME", action="append", help="public ssh key to let in, or one that is kept; may be repeated"
    )  # fmt: skip
    parser.add_argument("--user-data", metavar="FILE", help="handed to the guest's cloud-init; at most 64 KiB")
    parser.add_argument(
        "--nic", metavar="WHERE", action="append", dest="nics",
        help="a network card: default, network=NAME (of the cluster, see network add, else libvirt's on the host) or"
        " bridge=NAME[,vlan=N]; more, with commas: address=IP[/LENGTH] (once for each family), gateway=, dns=, mac=, mtu=;"
        " may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--network", metavar="NAME", action="append", dest="nics", type="network={}".format, help="short for --nic network=NAME"
    )
    _reaching(parser)
    parser.add_argument(
        "--publish", metavar="HOSTPORT:GUESTPORT", action="append",
        help="have a port of the host lead to one of the guest's; udp: before it, or /udp behind; may be repeated",
    )  # fmt: skip
    parser.add_argument("--restart", metavar="POLICY", help="when it goes down by itself: never, on-failure or always")
    parser.add_argument(
        "--grace-seconds", metavar="N", help="how long it has to power off when asked, before its plug is pulled (default: 30)"
    )
    parser.add_argument("--uuid", help="the instance's uuid; the same request with the same uuid makes one instance")
    parser.add_argument("--request-id", metavar="TEXT", help="like --uuid, with a text of your own")
    parser.add_argument("--timings-file", metavar="PATH", help="write what each part of the request took, as JSON")
    _waiting(parser, "the instance")
    parser.add_argument(
        "--wait", metavar="UNTIL",
        help="running (the default), or ready: until the guest itself says so, over its metadata service",
    )  # fmt: skip
    _json(parser)


def _reaching(parser: Parser) -> None:
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
        _DRIVE, metavar="FORM", help="its metadata as a disk, too: openstack (without FORM), nocloud, or auto where HTTP fails"
    )
    drive.add_argument("--no-config-drive", dest="config_drive", action="store_const", const="none", help="without that disk")
    parser.add_argument(
        "--allow", metavar="RULES", action="append",
        help="who may reach it: tcp:PORT[-PORT], udp:…, icmp, all, each with @CIDR where only those may; commas between; none",
    )  # fmt: skip
    parser.add_argument("--allow-all", action="store_true", help="everybody may reach it")


def _add_list(verbs: argparse._SubParsersAction[Parser]) -> None:
    _json(_verb(verbs, "list", "list all instances", "eschedule list --json"))


def _add_show(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "show", "show all about one instance", "eschedule show web-1")
    parser.add_argument("instance", metavar="NAME|UUID")
    _json(parser)


def _add_destroy(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "destroy", "destroy instances with their disks, for good", "eschedule destroy web-1 web-2")
    _instances(parser)
    _waiting(parser, "the end")


def _add_stop(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "stop", "shut guests down; disk, address and claim stay", "eschedule stop web-1")
    _instances(parser)
    _waiting(parser, "the stop")


def _add_start(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "start", "start guests that are down", "eschedule start web-1")
    _instances(parser)
    _waiting(parser, "the start")


def _add_reboot(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "reboot", "reboot guests; those that are down are started", "eschedule reboot web-1 --hard")
    parser.add_argument("--hard", action="store_true", help="pull the plug instead of asking the guest to shut down first")
    _instances(parser)
    _waiting(parser, "the reboot")


def _add_set(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "set", "change what a guest is told and who may reach it, without a restart",
        "eschedule set web-1 --key alice --key ~/.ssh/id_ed25519.pub --allow tcp:22,icmp",
    )  # fmt: skip
    parser.add_argument("instance", metavar="NAME|UUID")
    keys, user_data = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    keys.add_argument("--key", metavar="FILE|NAME", action="append", help="these public ssh keys in place of all it has")
    keys.add_argument("--no-keys", action="store_true", help="no ssh key any more")
    user_data.add_argument("--user-data", metavar="FILE", help="in place of what it has; at most 64 KiB")
    user_data.add_argument("--no-user-data", action="store_true", help="no user data any more")
    _reaching(parser)
    _waiting(parser, "the change")


def _add_port_forward(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
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
    _waiting(parser, "the change")
    _json(parser)


def _add_key(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "key", "keep public ssh keys under names, for --key", "eschedule key add alice ~/.ssh/id_ed25519.pub"
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="add|list|show|rm", parser_class=Parser, required=True)
    add = _verb(actions, "add", "keep the public keys of a file under a name", "ssh-add -L | eschedule key add alice")
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", metavar="FILE", nargs="?", default="-", help="of public keys; - (the default) is standard input")
    add.add_argument("--replace", action="store_true", help="in place of what that name has, if any")
    _json(_verb(actions, "list", "list the keys that are kept", "eschedule key list"))
    show = _verb(actions, "show", "print the keys of a name, as in authorized_keys", "eschedule key show alice")
    show.add_argument("name", metavar="NAME")
    _json(show)
    remove = _verb(actions, "rm", "keep a name's keys no more; instances that have them keep them", "eschedule key rm alice")
    remove.add_argument("name", metavar="NAME")


def _instances(parser: Parser) -> None:
    parser.add_argument("instances", metavar="NAME|UUID", nargs="+")


def _add_hosts(verbs: argparse._SubParsersAction[Parser]) -> None:
    _json(_verb(verbs, "hosts", "list the hosts, their state, and how much of them is used", "eschedule hosts"))


def _add_audit(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "audit", "compare etcd, Placement and the hosts; exit code 0 only when all agrees", "eschedule audit --fix"
    )  # fmt: skip
    parser.add_argument("hosts", metavar="HOST", nargs="*", help="look at these hosts only, by name or provider")
    parser.add_argument("--fix", action="store_true", help="cure what is safe; no guest and no disk is ever taken away")
    parser.add_argument("--wait-seconds", metavar="N", help="wait at most so long for the hosts (default: 10)")
    parser.add_argument(
        "--orphan-seconds", metavar="N",
        help="with --fix, release a claim that nobody has wanted for so long (default: 60; at least 40)",
    )  # fmt: skip
    _json(parser)


def _add_doctor(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "doctor", "check what this client needs: etcd, Placement, clock, hosts; exit code 1 with a failure",
        "eschedule doctor",
    )  # fmt: skip
    parser.add_argument("--fix", action="store_true", help="remove what earlier checks left in Placement, then look again")
    _json(parser)


def _add_adopt(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "adopt", "take over guests that etcd has lost, or remembers otherwise than they are", "eschedule adopt web-1"
    )  # fmt: skip
    parser.add_argument("instances", metavar="NAME|UUID", nargs="*")
    parser.add_argument("--all", action="store_true", help="every guest that etcd has lost")
    parser.add_argument("--spec", action="store_true", help="of a guest whose request in etcd is older: what etcd says counts")
    parser.add_argument("--domain", action="store_true", help="of such a guest: what the guest is counts")
    parser.add_argument("--name", metavar="NEW", help="another name, where its own is taken")
    _waiting(parser, "it")


def _add_network(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "network", "make, list, show and remove networks that hosts share, with a pool of addresses",
        "eschedule network add lan --bridge br0 --subnet 10.0.0.0/24 --gateway 10.0.0.1",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    _add_network_add(actions)
    _json(_verb(actions, "list", "list the networks, and how many of their addresses are used", "eschedule network list"))
    show = _verb(actions, "show", "show a network, and who has which of its addresses", "eschedule network show lan")
    show.add_argument("name", metavar="NAME")
    _json(show)
    remove = _verb(actions, "rm", "remove a network that nobody has an address of", "eschedule network rm lan")
    remove.add_argument("name", metavar="NAME")


def _add_network_add(actions: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        actions, "add", "make a network of a bridge that the hosts have under the same name",
        "eschedule network add lan --bridge br0 --subnet 10.0.0.0/24 --gateway 10.0.0.1 --range 10.0.0.50-10.0.0.99",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="what --nic network=NAME asks for")
    parser.add_argument("--bridge", metavar="NAME", required=True, help="the bridge, which each host that is to be used has")
    parser.add_argument(
        "--subnet", metavar="CIDR", action="append", required=True, help="its addresses; twice, once for each family, for both"
    )
    parser.add_argument("--gateway", metavar="IP", action="append", help="told the guests; of the subnet of its family")
    parser.add_argument(
        "--range", metavar="FIRST-LAST", action="append", help="what of the subnet of its family is for guests (default: all)"
    )
    parser.add_argument("--vlan", metavar="N", help="802.1Q tag on the bridge, 1 to 4094")
    parser.add_argument("--dns", metavar="IP", action="append", help="name server told the guests; may be repeated")
    parser.add_argument("--mtu", metavar="BYTES", help="largest packet (default: the bridge's)")
    _json(parser)


def _add_image(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        verbs, "image", "register images under names, list, show and remove them", "eschedule create 'resources=…' debian-12"
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="add|list|show|rm", parser_class=Parser, required=True)
    _add_image_add(actions)
    _json(_verb(actions, "list", "list the images that have a name", "eschedule image list"))
    show = _verb(actions, "show", "show an image: where it is, its checksum, what it needs", "eschedule image show debian-12")
    show.add_argument("name", metavar="NAME")
    _json(show)
    remove = _verb(actions, "rm", "forget a name; instances that were made of it stay", "eschedule image rm debian-12")
    remove.add_argument("name", metavar="NAME")


def _add_image_add(actions: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(
        actions, "add", "give an image a name, which means the same bytes for as long as it is there",
        "eschedule image add debian-12 https://images.example.org/debian-12.qcow2 --checksum-url SHA512SUMS --user debian",
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="what --image asks for")
    parser.add_argument("url", metavar="URL", help="http(s):// or file:// URL, or an absolute path on every host")
    sums = parser.add_mutually_exclusive_group(required=True)
    for algorithm in ("sha256", "sha512"):
        sums.add_argument(f"--{algorithm}", metavar="HEX", help="what the image's bytes come to")
    sums.add_argument("--checksum-url", metavar="URL", help="read it there, now; a mere name is looked for beside the image")
    parser.add_argument("--min-disk", metavar="GB", help="refuse requests for less DISK_GB")
    parser.add_argument("--min-memory", metavar="MB", help="refuse requests for less MEMORY_MB")
    parser.add_argument("--user", metavar="NAME", help="whom to log in as; for people")
    parser.add_argument(
        "--property", metavar="KEY=VALUE", action="append",
        help="hw_disk_bus=virtio|sata, hw_vif_model=virtio|e1000, os_distro=TEXT (for people); may be repeated",
    )  # fmt: skip
    _json(parser)


def _add_host(verbs: argparse._SubParsersAction[Parser]) -> None:
    parser = _verb(verbs, "host", "add hosts to the cluster, and remove them", "eschedule host add root@node2")
    actions = parser.add_subparsers(dest="action", metavar="token|add|remove", parser_class=Parser, required=True)
    _verb(
        actions,
        "token",
        "print what ecompute join needs on a new host",
        "eschedule host token | ssh root@node2 ecompute join -",
    )
    add = _verb(
        actions, "add", "have a machine join over ssh, and wait until it is Ready",
        "eschedule host add root@node2 --package dist/etcd-compute_0.1.0_amd64.deb",
    )  # fmt: skip
    add.add_argument("target", metavar="USER@HOST", help="as ssh takes it; root, or somebody whom sudo asks nothing")
    add.add_argument("--package", metavar="FILE.deb", help="installed there where ecompute is missing")
    add.add_argument("--ssh-option", metavar="NAME=VALUE", action="append", help="of ssh_config(5); may be repeated")
    add.add_argument("--force", action="store_true", help="have it leave the services of another compute.yaml for these")
    add.add_argument("--wait-seconds", metavar="N", help="wait at most so long for Ready (default: 180)")
    remove = _verb(actions, "remove", "take a host out that has no instances, dead or alive", "eschedule host remove node2")
    remove.add_argument("name", metavar="NAME|PROVIDER")
    remove.add_argument("--wait-seconds", metavar="N", help="wait at most so long for it to leave (default: 60)")


_VERBS: dict[str, Callable[[argparse._SubParsersAction[Parser]], None]] = {
    "create": _add_create,
    "list": _add_list,
    "show": _add_show,
    "destroy": _add_destroy,
    "stop": _add_stop,
    "start": _add_start,
    "reboot": _add_reboot,
    "set": _add_set,
    "port-forward": _add_port_forward,
    "key": _add_key,
    "hosts": _add_hosts,
    "audit": _add_audit,
    "doctor": _add_doctor,
    "adopt": _add_adopt,
    "network": _add_network,
    "image": _add_image,
    "host": _add_host,
}
