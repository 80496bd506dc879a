"""``md-server``: answers the guests of this host at 169.254.169.254. Needs neither etcd nor Placement nor libvirt.

Started by ecompute (``metadata.mode: managed``) or as a service of its own (``external``); it outlives ecompute either way.
Reads the configuration, takes the lock, keeps the address on the bridge and runs the server; decides nothing about requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import logs
from common.config import LogConfig, load_compute
from common.errors import ConfigError, Conflict, EcomputeError
from common.lockfile import LockFile
from common.logs import fields
from common.metadata import LOCK_NAME, MetadataStore, ServiceNote
from common.renderings.guest import Host
from common.reports import DIRECTORY_NAME, ReportStore
from common.retry import Backoff, Deadline, retry
from common.service_notify import ServiceNotifier
from common.signals import upon_end
from md_server import ipv6
from md_server.address import AddressKeeper, BridgeAddress
from md_server.app import Application
from md_server.arguments import parser
from md_server.ipv6 import Ipv6Service
from md_server.listening import allow_descriptors, listen
from md_server.lookup import Lookup
from md_server.netlink import IpAddress
from md_server.reporting import Reporter
from md_server.server import CONNECTIONS, GuestServer
from md_server.tokens import Tokens, secret_in

log = logging.getLogger("md_server.main")  # also when run as __main__

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFLICT = 0, 1, 2, 5
STOP_SECONDS = 5.0  # for the answers under way, and the threads
LOCK_SECONDS = 2.0  # a predecessor that is just ending, or somebody who looks who holds it


@dataclass(frozen=True)
class Settings:
    """What the configuration and the command line come to."""

    address: IpAddress
    port: int
    bridge: str  # "" where no interface is touched
    ipv6: str  # "auto": on that bridge too, where it has it; "off"
    directory: Path
    run_dir: Path
    zone: str
    log: LogConfig

    @property
    def note(self) -> ServiceNote:
        version = importlib.metadata.version("etcd-compute")
        return ServiceNote(version, f"{self.address}:{self.port}", self.bridge, str(self.directory), self.ipv6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 1 failed, 2 usage or configuration, 5 somebody else is in the way."""
    options = parser().parse_args(arguments)
    try:
        if options.check_external:
            return _is_external(options)
        settings = settings_of(options)
        if options.check_config:
            print("configuration is valid")
            return EXIT_DONE
        if options.remove_address:
            return remove_address(settings)
        logs.setup(settings.log.level, settings.log.format)
        try:
            serve(settings, ServiceNotifier.from_environment())
        finally:
            logs.shutdown()
    except EcomputeError as error:
        for line in str(error).splitlines():
            print(f"md-server: {line}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_CONFLICT if isinstance(error, Conflict) else EXIT_FAILED
    return EXIT_DONE


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of this run. ``--listen`` alone touches no interface, unless it names the configured address.

    Raises:
        ConfigError: the configuration or an option is wrong.
    """
    config = load_compute(options.config, reads_files=False)
    metadata, paths = config.metadata, config.paths
    if metadata.mode == "off":
        raise ConfigError(f"{config.source}: metadata.mode is off: there is nothing to serve; set it to managed or external")
    address, port = _address(metadata.address), metadata.port
    bridge = metadata.bridge
    if options.listen is not None:
        listened, port = _parse_listen(options.listen)
        bridge = bridge if listened == address else ""
        address = listened
    bridge = options.bridge if options.bridge is not None else bridge
    return Settings(
        address=address,
        port=port,
        bridge=bridge,
        ipv6=metadata.ipv6 if bridge else "off",
        directory=(options.state_dir or paths.state_dir).absolute() / "metadata",
        run_dir=(options.run_dir or paths.run_dir).absolute(),
        zone=config.name or socket.gethostname(),
        log=config.log,
    )


def _is_external(options: argparse.Namespace) -> int:
    """Whether a service of its own is wanted: with two the second one would be in the way of the first."""
    mode = load_compute(options.config, reads_files=False).metadata.mode
    print(f"metadata.mode is {mode}" + ("" if mode == "external" else ": no md-server of its own is wanted"))
    return EXIT_DONE if mode == "external" else EXIT_FAILED


def serve(settings: Settings, service: ServiceNotifier | None = None) -> None:
    """Serve until SIGTERM or SIGINT; *service* started us, and is told.

    Raises:
        Conflict: another md-server runs, another server has the port, or another interface has the address.
        EcomputeError: the kernel refused.
    """
    service = service or ServiceNotifier()
    lock = _locked(settings)
    lookup = Lookup(MetadataStore(settings.directory), Host(settings.zone, os.uname().machine))
    allow_descriptors(CONNECTIONS + 64)
    application = Application(
        lookup,
        tokens=Tokens(secret_in(settings.run_dir)),
        on_report=Reporter(ReportStore(settings.directory / DIRECTORY_NAME), settings.run_dir),
        own_address=str(settings.address),
    )
    server = GuestServer(
        application,
        listen(settings.address, settings.port),
        alive=service.alive,
        alive_every_seconds=service.alive_every_seconds,
    )
    upon_end(server.stop)
    watch = AddressWatch(settings, server) if settings.bridge else None
    log.info("serving", extra=fields(**dataclasses.asdict(settings.note)))
    service.ready(f"serving guests at {settings.note.listen}" + (f" on {settings.bridge}" if settings.bridge else ""))
    server.run()
    service.stopping(STOP_SECONDS)
    if watch:
        watch.end()
    log.info("stopped")
    lock.release()


class AddressWatch:
    """The keeper in its thread, after one look of ours that makes a start fail at once where it can never work."""

    def __init__(self, settings: Settings, server: GuestServer) -> None:
        self._server, self._failed = server, False
        wanted = BridgeAddress(settings.bridge, settings.address)
        service = Ipv6Service(settings.bridge, settings.port, server.serve_also) if settings.ipv6 != "off" else None
        self._keeper = AddressKeeper(wanted, also=service.look if service else lambda: True)
        presence = wanted.ensure()
        log.info("metadata address", extra=fields(address=settings.address, bridge=settings.bridge, presence=presence))
        self._thread = threading.Thread(target=self._run, name="address", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the thread.

        Raises:
            EcomputeError: it had ended by itself, and took the server with it.
        """
        self._keeper.stop()
        self._thread.join(0.5)
        if self._failed:
            raise EcomputeError("the metadata address is no longer looked after: see the log; start md-server again")

    def _run(self) -> None:
        try:
            self._keeper.run()
        except Exception:
            log.exception("bug: nobody looks after the metadata address any more; ending, to be started again")
            self._failed = True
            self._server.stop()


def remove_address(settings: Settings) -> int:
    """Take the metadata addresses from the bridge, for good: for when this host serves guests no longer.

    Raises:
        Conflict: an md-server runs, and would put it back at once.
        EcomputeError: the kernel refused.
    """
    if not settings.bridge:
        raise ConfigError("--remove-address needs the bridge: name it with --bridge, or leave --listen out")
    lock = _locked(settings)
    was_there = BridgeAddress(settings.bridge, settings.address).remove()
    removed = ([str(settings.address)] if was_there else []) + ipv6.remove(settings.bridge)
    what = f"{', '.join(removed)} removed from" if removed else f"{settings.address} was not on"
    print(f"{what} {settings.bridge}")
    lock.release()
    return EXIT_DONE


def _locked(settings: Settings) -> LockFile:
    lock = LockFile(settings.run_dir / LOCK_NAME)
    try:
        retry(
            lambda: lock.acquire(settings.note.as_note()),
            on=Conflict, deadline=Deadline(LOCK_SECONDS), backoff=Backoff(0.05, 0.2),
        )  # fmt: skip
    except Conflict as error:
        raise Conflict(f"another md-server runs on this host: {error}; stop that one first") from error
    return lock


def _address(text: str) -> IpAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no IP address") from error


def _parse_listen(text: str) -> tuple[IpAddress, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {text!r}: needs to be ADDRESS:PORT, such as 127.0.0.1:8775 or [::1]:8775")
    return _address(address.removeprefix("[").removesuffix("]")), int(port)


if __name__ == "__main__":
    sys.exit(main())
