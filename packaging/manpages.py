"""The manual of the three programs, made of their own command lines, so that both say the same.

    PYTHONPATH=… python3 packaging/manpages.py DIRECTORY

writes ``man1/eschedule.1``, a page for each of its verbs as git has them (``man eschedule-create``), ``man8/ecompute.8`` and
``man8/md-server.8`` below DIRECTORY. The markup is that of man(7). ``SOURCE_DATE_EPOCH`` is their date.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_EXIT_STATUS = "exit codes:"
_COMMON = frozenset({"--help", "--config", "--verbose"})  # said once of a verb that has verbs of its own
_SEE_ALSO = {
    "eschedule": "The documents in /usr/share/doc/etcd-compute begin with README.md; schedule.yaml explains itself.",
    "ecompute": "The documents in /usr/share/doc/etcd-compute begin with README.md; compute.yaml explains itself. "
    "ecompute join and ecompute doctor have options of their own: ecompute join --help.",
    "md-server": "docs/guests.md in /usr/share/doc/etcd-compute says what guests are told.",
}


def main(directory: Path) -> None:
    """Write all pages."""
    eschedule = importlib.import_module("eschedule.arguments").parser_for(None)
    _write(directory / "man1", "eschedule", _page("eschedule", eschedule, section=1, also=_SEE_ALSO["eschedule"]))
    for verb, parser in _verbs(eschedule).items():
        name = f"eschedule-{verb}"
        _write(
            directory / "man1", name, _page(name, parser, section=1, also="eschedule(1) has the exit codes and short forms.")
        )
    for program, module in (("ecompute", "ecompute.arguments"), ("md-server", "md_server.arguments")):
        parser = importlib.import_module(module).parser()
        _write(directory / "man8", program, _page(program, parser, section=8, also=_SEE_ALSO[program]))


def _write(directory: Path, name: str, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.{directory.name[-1]}").write_text(text)


def _page(name: str, parser: argparse.ArgumentParser, *, section: int, also: str) -> str:
    day = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.UTC).date()
    described = " ".join((parser.description or "").split())
    lines = [f'.TH "{name.upper()}" "{section}" "{day}" "etcd-compute" "etcd-compute"', ".SH NAME"]
    lines += [f"{_text(name)} \\- {_text(_lowered(described.partition('. ')[0].rstrip('.')))}"]
    lines += [".SH SYNOPSIS", *_literal(_usage(parser)), ".SH DESCRIPTION", _line(described), *_options(parser)]
    for verb, below in _verbs(parser).items():
        if section == 1 and name != "eschedule":
            lines += [f".SH {_text(f'{parser.prog} {verb}'.upper())}", _line(below.description or ""), *_literal(_usage(below))]
            lines += [*_options(below, heading=".PP", but=_COMMON), *_epilog(below, heading=".SS")]
    return "\n".join([*lines, *_epilog(parser), ".SH SEE ALSO", _line(also), ""])


def _usage(parser: argparse.ArgumentParser) -> Sequence[str]:
    return parser.format_usage().removeprefix("usage: ").rstrip().splitlines()


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser, heading: str = ".SH OPTIONS", but: frozenset[str] = frozenset()) -> Iterator[str]:
    formatter = parser._get_formatter()
    yield heading
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield from (".TP", f"\\fB{_text(choice.dest.replace(' ', '-'))}\\fR", _line(choice.help or ""))
        elif action.help is not argparse.SUPPRESS and not but.intersection(action.option_strings):
            shown = formatter._format_action_invocation(action)
            yield from (".TP", f"\\fB{_text(shown)}\\fR", _line(formatter._expand_help(action) if action.help else ""))


def _epilog(parser: argparse.ArgumentParser, heading: str = ".SH") -> Iterator[str]:
    """What stands behind the options: the examples, and of the program itself its exit codes."""
    for part in (parser.epilog or "").split("\n\n"):
        title, *rest = part.splitlines() or [""]
        if title.endswith(":"):
            shown = "exit status" if title == _EXIT_STATUS else title.rstrip(":")
            yield f"{heading} {_text(shown.upper() if heading == '.SH' else shown)}"
            yield from _literal([line.removeprefix("  ") for line in rest])
        elif part:
            yield from (".PP", _line(" ".join(part.split())))


def _literal(lines: Sequence[str]) -> Iterator[str]:
    yield from (".nf", *map(_line, lines), ".fi")


def _line(text: str) -> str:
    """*text* as a line of its own, which is no request to the formatter whatever it begins with."""
    text = _text(text)
    return f"\\&{text}" if text[:1] in (".", "'") else text or "\\&"


def _text(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
