"""The command line: verbs, options, help. Knows nothing of what they do, and imports nothing that takes time.

Two short forms come before the verbs: a request (``eschedule 'resources=…'``) is ``create``, and a uuid is ``show``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from common.errors import ConfigError
from common.text import nearest, quoted

EXAMPLE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TAKES_VALUE = ("--config",)  # of the options that may stand before the verb

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
    """argparse with errors as one line, and as an exception of ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.replace(chr(10), ' ')}; see: {self.prog} --help")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace; ``command`` is the verb, None where only ``--check-config`` was asked for.

    Raises:
        ConfigError: it is none; one line.
        SystemExit: after ``--help``, which is printed.
    """
    parser, verbs = _parser()
    options = parser.parse_args(_with_verb(list(arguments), verbs))
    if options.command is None and not (options.check_config or options.version):
        raise ConfigError(f"nothing was asked for; begin with: eschedule '{EXAMPLE}', or see: eschedule --help")
    return options


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


def _parser() -> tuple[Parser, tuple[str, ...]]:
    parser = Parser(
        prog="eschedule", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    _common(parser, None)
    parser.add_argument("--check-config", action="store_true", help="check the configuration, say where it is, and end")
    parser.add_argument("--version", action="store_true", help="print the version and end")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for add in (
        _add_create,
        _add_list,
        _add_show,
        _add_destroy,
        _add_stop,
        _add_start,
        _add_reboot,
        _add_hosts,
        _add_audit,
        _add_adopt,
    ):
        add(verbs)
    return parser, tuple(verbs.choices)


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
    parser.add_argument("query", metavar="'resources=…'", help="what it needs, as a query string of Placement's")
    parser.add_argument("image_argument", metavar="IMAGE", nargs="?", help="like --image")
    parser.add_argument("--image", help="http(s):// or file:// URL, or an absolute path on the host")
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
    parser.add_argument("--key", metavar="FILE", action="append", help="public ssh key to let in; may be repeated")
    parser.add_argument("--user-data", metavar="FILE", help="handed to the guest's cloud-init; at most 64 KiB")
    parser.add_argument("--network", metavar="NAME", action="append", help="libvirt network of a NIC; may be repeated")
    parser.add_argument("--restart", metavar="POLICY", help="when it goes down by itself: never, on-failure or always")
    parser.add_argument(
        "--grace-seconds", metavar="N", help="how long it has to power off when asked, before its plug is pulled (default: 30)"
    )
    parser.add_argument("--uuid", help="the instance's uuid; the same request with the same uuid makes one instance")
    parser.add_argument("--request-id", metavar="TEXT", help="like --uuid, with a text of your own")
    parser.add_argument("--timings-file", metavar="PATH", help="write what each part of the request took, as JSON")
    _waiting(parser, "the instance")
    _json(parser)


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
