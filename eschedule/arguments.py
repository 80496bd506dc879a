"""The command line: which verbs there are, and how their words are found; the options of each are in ``command_line``.

Knows nothing of what they do, and imports nothing that takes time.

Two short forms come before the verbs: a request (``eschedule 'resources=…'``) is ``create``, and a uuid is ``show``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from common.errors import ConfigError
from common.text import escaped, nearest, quoted
from eschedule.command_line.creating import add_create
from eschedule.command_line.disks import add_rebuild, add_snapshot
from eschedule.command_line.files import add_apply, add_diff, add_edit, add_export
from eschedule.command_line.hosts import add_audit, add_completion, add_doctor, add_host, add_hosts
from eschedule.command_line.images import add_image
from eschedule.command_line.instances import (
    add_adopt,
    add_destroy,
    add_label,
    add_list,
    add_pause,
    add_port_forward,
    add_protect,
    add_reboot,
    add_rename,
    add_resize,
    add_resume,
    add_set,
    add_show,
    add_start,
    add_stop,
    add_suspend,
    add_unlabel,
    add_unpause,
    add_unprotect,
)
from eschedule.command_line.keys import add_key
from eschedule.command_line.networks import add_network
from eschedule.command_line.parser import (
    DRIVE,
    DRIVE_FORMS,
    EXAMPLE,
    NameAlone,
    Parser,
    Verbs,
    common_options,
    descend,
    near_option,
)
from eschedule.command_line.reaching import add_console, add_exec, add_log, add_screenshot, add_ssh, add_vnc
from eschedule.command_line.room import add_capacity, add_explain
from eschedule.command_line.volumes import add_volume
from eschedule.command_line.watching import add_events, add_top, add_wait

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ALIASES = {"ls": "list"}
_QUERY = re.compile(r"\??[A-Za-z0-9_-]+=")  # how a request begins; an address may have a = further on
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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace; ``command`` is the verb, None where only ``--check-config`` was asked for.

    Raises:
        ConfigError: it is none; one line.
        SystemExit: after ``--help``, which is printed.
    """
    given = _with_verb(_with_drive_form(arguments), (*_VERBS, *_ALIASES))
    verb = next(iter(given), None)
    parser = parser_for(verb, is_for_names=given in (["--help"], ["-h"]))
    options, unknown = parser.parse_known_args(given)
    if unknown:
        raise ConfigError(_unknown(options, unknown, parser))
    if options.command is None and not (options.check_config or options.version):
        raise ConfigError(f"nothing was asked for; begin with: eschedule '{EXAMPLE}', or see: eschedule --help")
    options.command = _ALIASES.get(options.command, options.command)
    _split_words(options)
    _image_for_query(options)
    _check_choice(options)
    _check_needs(options)
    options.json = getattr(options, "output", None) == "json"
    return options


def _split_words(options: argparse.Namespace) -> None:
    """Tell instances and labels apart, which ``label`` and ``unlabel`` take together, and the query of a ``resize``."""
    if hasattr(options, "whom_and_query"):
        queries = [word for word in options.whom_and_query if "=" in word or ":" in word]  # which no name has
        if len(queries) > 1:
            raise ConfigError(f"there are {len(queries)} requests resources=…; resize takes one")
        options.query = next(iter(queries), None)
        options.instances = [word for word in options.whom_and_query if word not in queries]
    if not hasattr(options, "whom_and_labels"):
        return
    is_chosen, words = options.selector is not None, options.whom_and_labels
    if options.command == "label":
        options.labels = [word for word in words if "=" in word or word.endswith("-")]
        options.instances = [word for word in words if word not in options.labels]
    else:
        options.instances, options.labels = ([], words) if is_chosen else (words[:1], words[1:])
    if not options.labels:
        raise ConfigError(f"no label is given; see: eschedule {options.command} --help")


def _image_for_query(options: argparse.Namespace) -> None:
    """Take the only word of a ``create`` whose needs are said by options for what it is: the image."""
    if options.command != "create" or options.query is None or options.image_argument is not None:
        return
    is_said = any(getattr(options, name) is not None for name in ("cpus", "memory", "disk", "like", "file"))
    if is_said and not _QUERY.match(options.query):
        options.query, options.image_argument = None, options.query


def _check_choice(options: argparse.Namespace) -> None:
    """Raises: ConfigError: there are neither instances nor a selector, where one of them has to be, or both."""
    if not hasattr(options, "selector") or options.command in ("list", "top"):
        return
    names = getattr(options, "instances", None) or [name for name in (getattr(options, "instance", None),) if name]
    if options.command == "events" and not names:
        return
    if bool(names) == (options.selector is not None):
        wrong = (
            "instances are named, and chosen by -l; do one of them"
            if names
            else "the following arguments are required: NAME|UUID, or -l SELECTOR"
        )
        raise ConfigError(f"{wrong}; see: eschedule {options.command} --help")


def _check_needs(options: argparse.Namespace) -> None:
    """Raises: ConfigError: nothing says what is asked for."""
    ways = ("query", "cpus", "memory", "disk", "trait", "not_trait", "host", "zone", "like", "file")
    if options.command in ("create", "capacity", "explain") and all(getattr(options, way, None) is None for way in ways):
        raise ConfigError(
            "the following arguments are required: 'resources=…', or --cpus N --memory SIZE --disk SIZE; "
            f"see: eschedule {options.command} --help"
        )


def _unknown(options: argparse.Namespace, words: Sequence[str], parser: Parser) -> str:
    """What to say of *words* that the verb which *options* name does not take."""
    said = f"unrecognized arguments: {' '.join(map(escaped, words))}"
    if options.command == "set" and words[0].partition("=")[0] == "--publish":
        return f"{said}; to change ports of the host that lead to a guest, use: eschedule port-forward"
    path = [word for word in (options.command, getattr(options, "action", None)) if word]
    near = near_option(descend(parser, path)[0], words[0])
    return f"{said}; did you mean {near}?" if near else f"{said}; see: {' '.join(('eschedule', *path))} --help"


def _with_drive_form(arguments: Sequence[str]) -> list[str]:
    """*arguments* with the form of a config drive that none was given of; argparse would take the next word for it."""
    following = (*arguments[1:], "")
    return [
        f"{DRIVE}=openstack" if argument == DRIVE and after not in DRIVE_FORMS else argument
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
    if first == "help":
        return [*(argument for argument in arguments if argument != first and not argument.startswith("-")), "--help"]
    if any(_is_query(argument) for argument in arguments):
        return ["create", *arguments]
    if _UUID.fullmatch(first):
        return ["show", *arguments]
    near = nearest(first, verbs)
    hint = f"did you mean {near}?" if near else f"see: eschedule --help; a request for an instance looks like {EXAMPLE}"
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


def parser_for(verb: str | None, *, is_for_names: bool = False) -> Parser:
    """What reads the command line; only the parser of *verb* is made, where that is one: all of them take their time.

    Args:
        is_for_names: it reads nothing but ``--help``, which has the names of the verbs.
    """
    parser = Parser(
        prog="eschedule", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    common_options(parser, None)
    parser.add_argument("--check-config", action="store_true", help="check the configuration, say where it is, and end")
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser_class: Any = NameAlone if is_for_names else Parser
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=parser_class)
    verb = _ALIASES.get(verb, verb) if verb else None
    for name, add in _VERBS.items():
        if verb == name or verb not in _VERBS:
            add(verbs)
    return parser


_VERBS: dict[str, Callable[[Verbs], None]] = {
    "create": add_create,
    "list": add_list,
    "show": add_show,
    "destroy": add_destroy,
    "stop": add_stop,
    "start": add_start,
    "reboot": add_reboot,
    "pause": add_pause,
    "unpause": add_unpause,
    "suspend": add_suspend,
    "resume": add_resume,
    "rename": add_rename,
    "protect": add_protect,
    "unprotect": add_unprotect,
    "snapshot": add_snapshot,
    "rebuild": add_rebuild,
    "set": add_set,
    "edit": add_edit,
    "apply": add_apply,
    "diff": add_diff,
    "export": add_export,
    "label": add_label,
    "unlabel": add_unlabel,
    "resize": add_resize,
    "port-forward": add_port_forward,
    "wait": add_wait,
    "top": add_top,
    "events": add_events,
    "log": add_log,
    "console": add_console,
    "screenshot": add_screenshot,
    "vnc": add_vnc,
    "ssh": add_ssh,
    "exec": add_exec,
    "key": add_key,
    "hosts": add_hosts,
    "capacity": add_capacity,
    "explain": add_explain,
    "audit": add_audit,
    "doctor": add_doctor,
    "completion": add_completion,
    "adopt": add_adopt,
    "network": add_network,
    "image": add_image,
    "host": add_host,
    "volume": add_volume,
}
