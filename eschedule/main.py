"""The program ``eschedule``: parses the command line, runs one command, and turns errors into one line and an exit code.

Imports stay few and late, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from common.errors import ConfigError, EcomputeError
from eschedule.arguments import parse, parser_for
from eschedule.interruption import Interrupted, Interruption
from eschedule.screen import EXIT_CLOSED_PIPE, PROGRAM, Screen

if TYPE_CHECKING:
    from common.config import ScheduleConfig

GARBAGE_AFTER = 50_000  # new objects, before Python looks for cycles: most of a command's are modules, which stay
EXIT_BUG = 70  # EX_SOFTWARE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    _open_streams()
    screen = Screen()
    interruption = Interruption(
        lambda: screen.message("finishing what is in hand first; once more to leave at once, whatever that leaves behind")
    )
    try:
        interruption.listen()
        return _run(list(sys.argv[1:] if arguments is None else arguments), screen, interruption)
    except EcomputeError as error:
        from eschedule.verbs import exit_code  # noqa: PLC0415 - only where something failed

        screen.error(str(error))
        return exit_code(error)
    except Interrupted as interrupted:
        screen.message("interrupted")
        return interrupted.exit_code
    except BrokenPipeError:
        return EXIT_CLOSED_PIPE
    except Exception:  # noqa: BLE001 - the one place of this thread: a bug is told as one
        import traceback  # noqa: PLC0415

        screen.error("this is a bug; please report it with the lines below")
        traceback.print_exc()
        return EXIT_BUG
    finally:
        _drop_unwritable()


def _drop_unwritable() -> None:
    """Say nothing more where nobody reads: the interpreter flushes at its end, and would complain with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command() -> NoReturn:
    """The installed program: ``main``, then the end of the process.

    It ends without the interpreter's own tidying: threads that still follow a watch are inside gRPC then, which has been
    seen to crash under them. Nothing is left to tidy: connections and logs are closed, both streams are flushed here.
    """
    gc.set_threshold(GARBAGE_AFTER)
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = EXIT_CLOSED_PIPE
    os._exit(code)


def _open_streams() -> None:
    """Have both streams open and able to print any name; one that was closed must not become some connection's number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str], screen: Screen, interruption: Interruption) -> int:
    if arguments[:1] == ["__complete"]:
        from eschedule.completion import answer  # noqa: PLC0415

        screen.data(answer(arguments[1:], parser_for))
        return 0
    options = parse(arguments)
    options.arguments = arguments
    if options.version:
        from importlib.metadata import version  # noqa: PLC0415

        screen.data(f"{PROGRAM} {version('etcd-compute')}\n")
        return 0
    if options.command == "completion":
        from eschedule.completion import script  # noqa: PLC0415

        screen.data(script(options.shell))
        return 0
    from common import logs  # noqa: PLC0415
    from common.config import describe, load_schedule  # noqa: PLC0415 - imports yaml

    try:
        config = load_schedule(None if options.config is None else Path(options.config))
    except ConfigError as error:
        if options.command != "doctor":
            raise
        from eschedule.doctor import report_configuration  # noqa: PLC0415

        return report_configuration(screen, error, options)
    if options.check_config:
        screen.data("".join(f"{line}\n" for line in describe(config)))
        return 0
    logs.setup(config.log.level if options.verbose else "error", config.log.format)
    try:
        return _command(options, config, screen, interruption)
    finally:
        logs.shutdown()


def _command(options: argparse.Namespace, config: ScheduleConfig, screen: Screen, interruption: Interruption) -> int:
    from eschedule.session import Session, act_of  # noqa: PLC0415
    from eschedule.verbs import command_of  # noqa: PLC0415

    session = Session(config, screen, interruption, act=act_of(options))
    try:
        if getattr(options, "selector", None) is not None and options.command != "list":
            from eschedule.selecting import resolve  # noqa: PLC0415

            resolve(session, options)
        return command_of(options.command)(session, options)
    finally:
        session.close()


if __name__ == "__main__":
    command()
