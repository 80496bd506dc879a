"""The command ``ecompute``: reads the configuration, then runs the agent until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import NoReturn

from common import logs
from common.config import ComputeConfig, describe, load_compute
from common.errors import ConfigError, EcomputeError, OwnershipError, Transient
from common.service_notify import ServiceNotifier
from common.signals import upon_end
from ecompute import identity
from ecompute.arguments import parser
from ecompute.vendor_data import read_vendor_data

logger = logging.getLogger(__name__)
M_ARENA_MAX = -8  # malloc.h
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_CONFLICT = 0, 1, 2, 4, 5
# What can be asked for beside running: the module of each, whose ``command(config_file, arguments)`` answers the exit code.
VERBS: dict[str, str] = {"doctor": "ecompute.doctor", "join": "ecompute.join"}


def main(argv: list[str] | None = None) -> int:
    """Run; the exit code: 0 stopped as asked, 2 configuration, 4 a service is away, 5 the provider is another's."""
    options = _parsed(sys.argv[1:] if argv is None else argv)
    try:
        if options.verb:
            return int(importlib.import_module(VERBS[options.verb]).command(options.config, options.rest))
        config = load_compute(options.config)
        if options.check_config:
            read_vendor_data(config.metadata.vendor_data_file)
            print("\n".join(describe(config)))
            return EXIT_OK
        logs.setup(config.log.level, config.log.format, host=config.name or identity.host_name())
        if config.source is None:
            logger.info("no compute.yaml found; every key has its default")
        try:
            return _run(config, options)
        finally:
            logs.shutdown()
    except EcomputeError as error:
        for line in str(error).splitlines():
            print(f"ecompute: {line}", file=sys.stderr)
        return exit_code(error)


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The options; those behind a verb are the verb's own, and are left in ``rest``."""
    words = [] if "--prefetch" in argv else argv  # an image may be called like a verb
    at = next(
        (number for number, word in enumerate(words) if word in VERBS and argv[number - 1 : number] != ["--config"]), None
    )
    options = parser().parse_args(argv if at is None else argv[:at])
    options.verb, options.rest = (None, []) if at is None else (argv[at], argv[at + 1 :])
    return options


def command() -> NoReturn:
    """The installed program: ``main``, then the end of the process without the interpreter's own tidying.

    Threads that still follow a watch are inside gRPC then, which has been seen to crash under them; everything that wants
    an end has had it.
    """
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(error: EcomputeError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    if isinstance(error, OwnershipError):
        return EXIT_CONFLICT
    return EXIT_UNAVAILABLE if isinstance(error, Transient) else EXIT_FAILED


def _run(config: ComputeConfig, options: argparse.Namespace) -> int:
    if options.leave:
        from ecompute.leave import leave  # noqa: PLC0415 - only this action needs it

        leave(config)
        return EXIT_OK
    if options.prefetch is not None:
        from ecompute.prefetch import prefetch  # noqa: PLC0415

        return prefetch(config, options.prefetch)
    from ecompute.agent import Agent  # noqa: PLC0415 - --help and --check-config must work without libvirt's bindings
    from ecompute.leaving import has_left  # noqa: PLC0415

    _keep_heaps_few()
    stop = threading.Event()
    upon_end(stop.set)
    environment = dict(os.environ)  # before the service manager's variables are taken out of it
    service = ServiceNotifier.from_environment()
    if has_left(config, stop, service):
        return EXIT_OK
    agent = Agent(config, stop, take_provider=options.take_provider, service=service)
    agent.run()
    if agent.is_to_leave:
        _begin_anew(environment)
    return EXIT_OK


def _begin_anew(environment: Mapping[str, str]) -> NoReturn:
    """Become a new process of the same command line and process id, which finds the note that tells it to leave the cluster.

    None of this one's threads is left then to enter the host into Placement again behind its back.
    """
    logs.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - our own command line


def _keep_heaps_few() -> None:
    """Have all threads share two heaps of the C library; it would give each its own, up to eight a core, and keep them."""
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


if __name__ == "__main__":
    command()
