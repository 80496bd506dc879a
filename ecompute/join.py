"""``ecompute join``: makes this host one of a cluster, from nothing to Ready, and says each thing that it does.

Look at both services with what would be written → write compute.yaml → doctor → start ecompute → wait until it is Ready. Every
step may be repeated: what is done already is found, and a join that was killed goes on where it is called again. Nothing is
written before both services have answered.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from common.arguments import OneLineParser
from common.checkup import Level
from common.config import ComputeConfig, load_compute
from common.errors import ConfigError, Conflict, EcomputeError, Transient
from common.etcd_store import EtcdStore
from common.join_document import MOST_CHARACTERS, JoinDocument, check_document, document_in
from common.keys import DEFAULT_PREFIX, Keys
from common.model import HostRecord, HostState, OwnerRecord
from common.placement import Placement
from common.retry import Backoff, Deadline, retry
from common.text import escaped, quoted
from common.validate import parse_seconds
from ecompute import identity
from ecompute.doctor import examine_and_cure
from ecompute.heartbeat import check_owner
from ecompute.join_files import DIRECTORY, plan, tried_out, write
from ecompute.join_service import Service, has_md_server_unit
from ecompute.leave_note import has_note, remove_note
from ecompute.libvirt_driver import LibvirtDriver

READY_SECONDS = 120.0  # the proof of KVM takes up to 20 of them
EXIT_INTERRUPTED = 130


def command(config_file: Path | None, arguments: Sequence[str]) -> int:
    """Run ``ecompute join``; its exit code.

    Raises:
        ConfigError: the token, an address or what would be written is wrong; nothing was changed.
        Conflict: compute.yaml names other services; nothing was changed.
        OwnershipError: the provider is another machine's.
        Transient: a service did not answer, or the host is not Ready in time.
    """
    options = _parser().parse_args(list(arguments))
    target = config_file or DIRECTORY / "compute.yaml"
    logging.getLogger().addHandler(logging.NullHandler())  # what parts of ecompute log is said by doctor
    try:
        wait_seconds = parse_seconds(options.wait_seconds or str(READY_SECONDS), "--wait-seconds")
        if os.geteuid() and config_file is None:
            raise ConfigError(f"join writes {target} and starts a service, which takes root: sudo ecompute join …")
        name, provider = _join(target, options, wait_seconds)
    except KeyboardInterrupt:
        _say("interrupted; repeat it to go on")
        return EXIT_INTERRUPTED
    except Conflict as error:
        _say(str(error))
        return 5
    if options.json:
        print(json.dumps({"name": name, "provider": str(provider), "state": "Ready"}))
    else:
        print(f"{name} is Ready; provider {provider}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("ecompute join", "Makes this host one of a cluster; may be repeated.")
    parser.add_argument(
        "where", metavar="TOKEN|FILE|-|URL[,URL…]", nargs="?",
        help="what eschedule host token printed, a file with it, - for standard input (for tokens with secrets), or etcd's"
        " address; nothing: as compute.yaml says",
    )  # fmt: skip
    parser.add_argument("--placement", metavar="URL", help="Placement's address, beside etcd's")
    parser.add_argument("--ca", metavar="FILE", help="CA of etcd's certificates, beside an https:// address of etcd's")
    parser.add_argument(
        "--force", action="store_true",
        help="replace a compute.yaml that names other services (it is kept as .bak), and start whatever doctor says",
    )  # fmt: skip
    parser.add_argument("--wait-seconds", metavar="N", help=f"wait at most so long for Ready (default: {READY_SECONDS:.0f})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _join(target: Path, options: argparse.Namespace, wait_seconds: float) -> tuple[str, UUID]:
    wanted = _wanted(options)
    is_new = False
    if wanted is not None:
        planned = plan(wanted, target, has_md_server_unit=has_md_server_unit(target))
        planned.refuse(force=options.force)
        with tried_out(planned) as trial:
            _look_at_services(trial)
        is_new = write(planned, force=options.force)
        _say(f"{target} is {'written' if is_new else 'there already, just so'}")
    elif not target.exists():
        raise ConfigError(
            f"{target} is not there, and no token or address was given; on a machine with schedule.yaml: eschedule host token"
        )
    config = load_compute(target)
    if wanted is None:
        _look_at_services(config)
    _examine(config, force=options.force)
    return _serve(config, wait_seconds, is_new=is_new)


# -- what to join --------------------------------------------------------------------------------------------------------


def _wanted(options: argparse.Namespace) -> JoinDocument | None:
    """Which services; None for those of the compute.yaml that is there.

    Raises:
        ConfigError: it cannot be read, or holds a secret and was given where everybody sees it.
    """
    where = options.where
    if where is not None and where.startswith(("http://", "https://")):
        return _named_services(options)
    if options.placement or options.ca:
        raise ConfigError(
            "--placement and --ca go with etcd's address, as in: ecompute join http://ETCD:2379 --placement http://PLACEMENT:8778"
        )
    if where is None:
        return None
    if where == "-":
        data = sys.stdin.buffer.read(MOST_CHARACTERS + 2) if sys.stdin else b""
        return document_in(data.decode(errors="replace"))
    if "/" in where or "." in where or os.path.isfile(where):  # noqa: PTH113 - pathlib refuses a token, which is too long for a name
        return document_in(_read(Path(where)))
    document = document_in(where)
    if document.secrets:
        raise ConfigError(
            f"the token holds {' and '.join(document.secrets)}, which everybody on this host can read on a command line, and "
            "in the shell's history: change that, and give the next token by standard input (ecompute join -) or in a file"
        )
    return document


def _named_services(options: argparse.Namespace) -> JoinDocument:
    if not options.placement:
        raise ConfigError(
            f"where is Placement? name it, too: ecompute join {quoted(options.where)} --placement http://PLACEMENT:8778"
        )
    endpoints = [endpoint for endpoint in options.where.split(",") if endpoint]
    document = JoinDocument(
        {"endpoints": endpoints, "prefix": DEFAULT_PREFIX}, {"url": options.placement},
        {"ca_file": _read(Path(options.ca))} if options.ca else {},
    )  # fmt: skip
    check_document(document)
    return document


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS + 2)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None


# -- the steps -----------------------------------------------------------------------------------------------------------


def _look_at_services(config: ComputeConfig) -> None:
    """See that etcd and Placement answer, to whom we would be, and that this host's provider is its own.

    Raises:
        EcomputeError: one does not; or libvirt does not.
    """
    provider, libvirt_host_uuid = _who(config)
    store = EtcdStore(config.etcd)
    placement = Placement(config.placement, etcd_prefix=config.etcd.prefix)
    try:
        found = store.get(Keys(config.etcd.prefix).owner(provider))
        if found is not None:
            mine = OwnerRecord(identity.machine_id(), libvirt_host_uuid, config.name or identity.host_name())
            check_owner(OwnerRecord.from_json(found.value), provider, mine)
        placement.check_version()
        placement.provider(provider)  # with our token, which the version takes no notice of
    finally:
        placement.close()
        store.close()
    _say(f"etcd ({', '.join(config.etcd.endpoints)}) and Placement ({config.placement.url}) answer")


def _who(config: ComputeConfig) -> tuple[UUID, str]:
    """This host's provider, and libvirt's uuid of it."""
    hypervisor = LibvirtDriver(config.libvirt.uri)
    try:
        libvirt_host_uuid = hypervisor.host().libvirt_host_uuid
    finally:
        hypervisor.close()
    return identity.provider_uuid(config.uuid, identity.machine_id(), libvirt_host_uuid), libvirt_host_uuid


def _examine(config: ComputeConfig, *, force: bool) -> None:
    """Have doctor look at this host and cure what is ours, as ecompute does when it starts; what is not well is said.

    Debian leaves libvirt's network down, so that no new machine would do without that.

    Raises:
        EcomputeError: guests could not run here, and *force* is not given.
    """
    _say("doctor looks at this host")
    report, fixed = examine_and_cure(config, is_joining=True)
    for line in fixed:
        _say(escaped(f"doctor: fixed: {line}"))
    for result in report.results:
        if result.level is not Level.OK:
            cure = f" -> {result.cure}" if result.cure else ""
            _say(escaped(f"doctor: {result.level}: {result.name}: {result.text}{cure}"))
    failures = report.count(Level.FAILURE)
    if failures and not force:
        raise EcomputeError(
            f"doctor found {failures} failure{'s' * (failures > 1)}, and nothing was started: cure what it names and repeat "
            "this (ecompute doctor has all that it looked at; --force starts all the same)"
        )
    _say(f"doctor: {report.count(Level.OK)} OK, {report.count(Level.WARNING)} warnings, {failures} failures")


def _serve(config: ComputeConfig, wait_seconds: float, *, is_new: bool) -> tuple[str, UUID]:
    """Have ecompute run as *config* says, and wait until this host is Ready; its name and provider."""
    provider, _ = _who(config)
    service, key = Service(config, provider), Keys(config.etcd.prefix).host(provider)
    if has_note(config.paths.state_dir) and service.is_running():
        raise Conflict("this host is just leaving the cluster; repeat this when its ecompute has ended")
    remove_note(config.paths.state_dir)
    store = EtcdStore(config.etcd)
    try:
        is_elsewhere = service.is_running() and (is_new or store.get(key) is None)
        _say(f"ecompute {service.restart() if is_elsewhere else service.start()}")
        record = retry(
            lambda: _ready(store, key, service), on=Transient, deadline=Deadline(wait_seconds), backoff=Backoff(0.3, 1.0)
        )
    finally:
        store.close()
    return record.name, provider


def _ready(store: EtcdStore, key: str, service: Service) -> HostRecord:
    """The host's record, once it is Ready.

    Raises:
        Transient: it is not yet.
        EcomputeError: it will not be.
    """
    if failure := service.failure():
        raise EcomputeError(f"{failure}; see {service.where_it_logs}")
    item = store.get(key)
    record = HostRecord.from_json(item.value) if item else None
    if record is None or record.boot_id != identity.boot_id():
        raise Transient(f"this host has no heartbeat yet; see {service.where_it_logs}; join may be repeated")
    if record.state is not HostState.READY:
        raise Transient(f"this host is {record.state}: {record.message}; see {service.where_it_logs}; join may be repeated")
    return record


def _say(text: str) -> None:
    print(f"ecompute: {text}", file=sys.stderr, flush=True)
