"""The options of the verbs that reach a guest: its log, console, screen, and commands in it."""

from __future__ import annotations

import argparse

from eschedule.command_line.parser import Parser, Verbs, verb


def _of_guest(verbs: Verbs, name: str, help: str, example: str) -> Parser:
    parser = verb(verbs, name, help, example)
    parser.add_argument("instance", metavar="NAME|UUID")
    return parser


def _uri(parser: Parser) -> None:
    parser.add_argument(
        "--uri", help="of the libvirt of its host (default: on that host its own, else hosts.libvirt_uri of schedule.yaml)"
    )


def add_log(verbs: Verbs) -> None:
    parser = _of_guest(verbs, "log", "print what a guest said on its serial console", "eschedule log web-1 --tail 20 -f")
    parser.mixes = True
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what it says from now on, until Ctrl-C")
    parser.add_argument("--tail", metavar="N", help="the last N lines only, at most 180 KiB")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="its bytes as they are to a terminal, too, which obeys them (pipes get them so)",
    )


def add_console(verbs: Verbs) -> None:
    parser = _of_guest(
        verbs, "console", "type on a guest's serial console; Ctrl-] leaves it", "eschedule console web-1"
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="take it from whoever has it now")
    _uri(parser)


def add_screenshot(verbs: Verbs) -> None:
    parser = _of_guest(
        verbs, "screenshot", "take a picture of a guest's screen (needs libvirt.graphics: vnc on its host)",
        "eschedule screenshot web-1 web-1.png",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="where to write it, as PNG; - for standard output")


def add_vnc(verbs: Verbs) -> None:
    parser = _of_guest(
        verbs,
        "vnc",
        "say how a guest's screen is reached (needs libvirt.graphics: vnc on its host)",
        "eschedule vnc web-1 --open",
    )
    parser.add_argument("--open", action="store_true", help="run virt-viewer on it")
    _uri(parser)


def add_ssh(verbs: Verbs) -> None:
    parser = _of_guest(
        verbs, "ssh", "log into a guest by ssh; the keys that it reported are checked", "eschedule ssh web-1 -- uptime"
    )
    parser.mixes = True
    parser.add_argument("--user", help="whom to log in as (default: the user of its image, if that is registered with one)")
    parser.add_argument("--jump", metavar="HOST", help="through this machine (default: hosts.ssh_jump of schedule.yaml)")
    parser.add_argument("-i", dest="identity", metavar="FILE", help="with this private key")
    parser.add_argument(
        "words", metavar="COMMAND", nargs=argparse.REMAINDER, help="to run there, behind --; without it a shell"
    ).required = False  # argparse would name it among what is missing


def add_exec(verbs: Verbs) -> None:
    parser = _of_guest(
        verbs, "exec", "run a command in a guest by the agent in it (qemu-guest-agent), without a network",
        "eschedule exec web-1 -- systemctl is-system-running",
    )  # fmt: skip
    parser.mixes = True
    parser.add_argument("--timeout-seconds", metavar="N", help="how long to wait for its end (default: 60)")
    parser.add_argument("--raw", action="store_true", help="its output as it is to a terminal, too")
    parser.add_argument(
        "words", metavar="COMMAND", nargs=argparse.REMAINDER, help="a program and its arguments, behind --; no shell reads it"
    )
