"""The options of the verbs that work on files which describe instances: ``apply``, ``diff``, ``export``, ``edit``."""

from __future__ import annotations

from eschedule.command_line.parser import Parser, Verbs, instances, json_option, verb, waiting


def add_apply(verbs: Verbs) -> None:
    parser = verb(
        verbs, "apply", "have instances be as files say: create what is missing, change what differs",
        "eschedule apply -f web.yaml db.yaml\n  eschedule export web-1 | sed s/web-1/web-2/ | eschedule apply -f -",
    )  # fmt: skip
    _files(parser)
    waiting(parser, "each change")
    json_option(parser)


def add_diff(verbs: Verbs) -> None:
    parser = verb(
        verbs, "diff", "say what apply would do; exit code 0 where all is as the files say, 1 where it is not",
        "eschedule diff -f web.yaml",
    )  # fmt: skip
    _files(parser)
    json_option(parser)


def _files(parser: Parser) -> None:
    parser.add_argument(
        "-f", "--file", metavar="FILE", nargs="+", required=True, help="YAML (docs/vm-file.md); - is standard input"
    )


def add_export(verbs: Verbs) -> None:
    parser = verb(
        verbs, "export", "print instances as a file for apply",
        "eschedule export web-1 > web-1.yaml\n  eschedule export -l app=web > site.yaml",
    )  # fmt: skip
    instances(parser)
    json_option(parser)


def add_edit(verbs: Verbs) -> None:
    parser = verb(
        verbs, "edit", "change an instance in an editor ($VISUAL, $EDITOR, else vi)", "EDITOR=nano eschedule edit web-1"
    )  # fmt: skip
    parser.add_argument("instance", metavar="NAME|UUID")
    waiting(parser, "the change")
