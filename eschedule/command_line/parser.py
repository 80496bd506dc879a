"""What all verbs share: the parser with errors as one line, and the options that several of them take."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from common.errors import ConfigError
from common.text import nearest, quoted
from eschedule.output import parse_form

EXAMPLE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
MOST_REASON_CHARACTERS = 500
DRIVE, DRIVE_FORMS = "--config-drive", ("auto", "openstack", "nocloud", "none")


class Parser(argparse.ArgumentParser):
    """argparse with errors as one line, and as an exception of ours.

    *mixes*: its words may stand among its options, too. argparse takes those that may be missing for missing at the first
    option.
    """

    mixes = False

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.replace(chr(10), ' ')}; see: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: object) -> None:  # of argparse, whose text lists all there are
        if action.choices is None or value in action.choices:
            return
        near = nearest(str(value), map(str, action.choices))
        hint = f"did you mean {near}?" if near else f"there are {', '.join(map(str, action.choices))}"
        what = f"is no action of {self.prog}" if isinstance(action, argparse._SubParsersAction) else f"is no {action.metavar}"
        raise ConfigError(f"{quoted(str(value))} {what}; {hint}")

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


def descend(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, list[str], tuple[str, ...]]:
    """The parser that the last of *words* is for, those that it has read, and the verbs that lead to it."""
    rest, path = list[str](), tuple[str, ...]()
    for word in words:
        below = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
        if below is not None and word in below.choices:
            parser, rest, path = below.choices[word], [], (*path, word)
        else:
            rest.append(word)
    return parser, rest, path


def near_option(parser: argparse.ArgumentParser, text: str) -> str | None:
    """The option of *parser* that somebody who typed *text* most likely meant, if any is near."""
    name = text.partition("=")[0]
    return nearest(name, parser._option_string_actions) if name.startswith("--") else None


class NameAlone:
    """In place of a verb's parser where only names are wanted, since to make all parsers takes longer than all the rest.

    It takes whatever a ``Parser`` is told, and reads nothing.
    """

    def __init__(self, **_: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> NameAlone:
        return self

    def __getattr__(self, _: str) -> NameAlone:
        return self


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse has no public name for what add_subparsers() answers


def common_options(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Options that may stand before the verb and behind it."""
    parser.add_argument(
        "--config", metavar="FILE", default=default,
        help="schedule.yaml; else ./, ~/.config/etcd-compute/ and /etc/etcd-compute/ are looked into",
    )  # fmt: skip
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=False if default is None else default, help="log what is done"
    )


def verb(verbs: Verbs, name: str, help: str, *examples: str, aliases: Sequence[str] = ()) -> Parser:
    title = "examples" if len(examples) > 1 else "example"
    parser = verbs.add_parser(
        name, aliases=aliases, help=help, description=f"{help[0].upper()}{help[1:]}.",
        epilog="\n  ".join((f"{title}:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    common_options(parser)
    return parser


def parse_reason(text: str) -> str:
    """Raises: ConfigError: it is long, or not one line."""
    if len(text) > MOST_REASON_CHARACTERS or not text.isprintable():
        raise ConfigError(f"--reason has at most {MOST_REASON_CHARACTERS} printable characters, on one line")
    return text


def reason(parser: Parser) -> None:
    """``--reason``, of every verb that changes an instance or a host; ``Session.act`` carries it into the journal."""
    parser.add_argument("--reason", metavar="TEXT", type=parse_reason, help="why, for whoever asks: eschedule events")


def waiting(parser: Parser, what: str, *, has_reason: bool = True) -> None:
    """How long to wait for *what*; and ``--reason``, unless nothing that the journal knows of is changed."""
    if has_reason:
        reason(parser)
    parser.add_argument("--no-wait", action="store_true", help=f"return once {what} is asked for")
    parser.add_argument("--wait-seconds", metavar="N", help="wait at most so long (default: wait_seconds of schedule.yaml)")


def json_option(parser: Parser) -> None:
    """``-o``, and ``--json`` for short."""
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="print JSON, like -o json")
    parser.add_argument(
        "-o", "--output", type=parse_form, metavar="FORM",
        help="json, yaml, name (nothing else), wide (more columns) or custom-columns=NAME:.field,…",
    )  # fmt: skip


def sure(parser: Parser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask on a terminal whether that is meant")


def instances(parser: Parser) -> None:
    """Names or uuids, or a selector in their place."""
    parser.mixes = True
    parser.add_argument("instances", metavar="NAME|UUID", nargs="*")
    selector(parser)


def selector(parser: Parser) -> None:
    """``-l``; ``arguments.parse`` sees to it that there are either names or this, ``selecting`` makes names of it."""
    parser.add_argument(
        "-l", "--selector", metavar="SELECTOR",
        help="those whose labels are so, in place of names: app=web, app!=web, app, !app; a comma is an and",
    )  # fmt: skip
