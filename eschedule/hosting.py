"""The command ``host``: a token for new hosts, a host added over ssh, a host removed; ``host_settings`` has the rest."""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import partial
from pathlib import Path
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, Permanent, Transient
from common.join_document import document_of
from common.model import HostRecord, HostState
from common.retry import Backoff, Deadline, retry
from common.text import quoted
from common.validate import parse_seconds
from eschedule import host_settings, host_view
from eschedule.acts import record_host
from eschedule.host_removal import Removal
from eschedule.remote import Remote, file_with
from eschedule.session import Session, user_at_host

ADD_SECONDS, REMOVE_SECONDS = 180.0, 60.0  # for Ready; for a host to leave
INSTALL_SECONDS = 1200.0  # QEMU and libvirt are some hundred MB on a slow line
SEEN_SECONDS = 30.0
LOOK = "if command -v ecompute >/dev/null 2>&1; then echo there; else echo missing; fi"
AS_ROOT = 'if [ "$(id -u)" -eq 0 ]; then s=; else s="sudo -n"; fi; '
# The package comes by standard input, is looked at whole before it is installed, and goes again whatever happens. A machine
# that was just set up may have no lists of Debian's packages, or old ones: they are fetched where it does not go without.
INSTALL = (
    AS_ROOT
    + 'set -e; d=$(mktemp -d); trap "rm -rf $d" EXIT; trap "exit 1" HUP INT TERM; chmod 755 "$d"; f=$d/etcd-compute.deb; '
    'cat >"$f"; echo "{digest}  $f" | sha256sum -c --quiet - || {{ echo "the package came damaged" >&2; exit 1; }}; '
    "apt() {{ $s env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "
    '"$@" </dev/null >"$d/log" 2>&1; }}; '
    'put() {{ apt -o APT::Install-Recommends=true install "$f"; }}; '
    "put || {{ apt update && put; }} || "
    '{{ c=$?; grep -E "^(E:|dpkg: error)" "$d/log" >&2 || tail -n 1 "$d/log" >&2; exit $c; }}'
)
JOIN = AS_ROOT + "exec $s ecompute join - --json --wait-seconds {seconds:g}{more}"
_ERRORS: dict[int, type[EcomputeError]] = {2: ConfigError, 4: Transient, 5: Conflict}


def host(session: Session, options: argparse.Namespace) -> int:
    """Run ``host``; its exit code."""
    actions = {
        "token": _token, "add": _add, "remove": _remove, "disable": host_settings.disable, "enable": host_settings.enable,
        "trait": host_settings.trait, "label": host_settings.label, "show": host_view.show,
    }  # fmt: skip
    return actions[options.action](session, options)


def _token(session: Session, _: argparse.Namespace) -> int:
    document = document_of(session.config)
    session.screen.data(f"{document.to_token()}\n")
    if document.secrets:
        session.screen.warning(
            f"the token holds {' and '.join(document.secrets)}: on the new host give it by standard input (ecompute join -) or "
            "in a file, never on a command line"
        )
    else:
        session.screen.message("on the new host: ecompute join TOKEN")
    return 0


def _remove(session: Session, options: argparse.Namespace) -> int:
    wait_seconds = parse_seconds(options.wait_seconds or str(REMOVE_SECONDS), "--wait-seconds")
    removal = Removal(session.store, session.keys, session.placement, user_at_host(), session.interruption.check)
    found = removal.find(options.name)
    session.screen.progress(
        f"asking {found.name} to leave" if found.is_alive else f"{found.name} has no heartbeat; removing it from here"
    )
    has_left = removal.remove(found, wait_seconds)
    record_host(session, found.provider, found.name)
    session.screen.message(f"{found.name} ({found.provider}) is removed")
    if not has_left:
        session.screen.warning(
            "it had no heartbeat, so that it does not know: where that machine still exists, see that its ecompute is not "
            "started again (systemctl disable --now ecompute), else it comes back by itself"
        )
    return 0


def _add(session: Session, options: argparse.Namespace) -> int:
    wait_seconds = parse_seconds(options.wait_seconds or str(ADD_SECONDS), "--wait-seconds")
    document = document_of(session.config)
    package = None if options.package is None else _package(Path(options.package))
    remote = Remote(options.target, options.ssh_option or ())
    session.screen.progress(f"looking at {remote.target}")
    found = remote.run(LOOK, seconds=60)
    if found.exit_code or found.last_line not in ("there", "missing"):
        raise Permanent(
            f"{remote.target} does not run commands as a shell would (exit code {found.exit_code}): "
            f"{found.last_words or quoted(found.last_line) or 'it said nothing'}"
        )
    if found.last_line == "missing":
        if package is None:
            raise ConfigError(
                f"there is no ecompute on {remote.target}: name the package that is to be installed there, as in --package "
                "dist/etcd-compute_0.1.0_amd64.deb (packaging/build-deb.sh makes it)"
            )
        _install(session, remote, package)
    elif package is not None:
        session.screen.message(f"{remote.target}: ecompute is installed already; the package is not used")
    provider = _have_join(session, remote, document.to_token(), wait_seconds, force=options.force)
    record = retry(
        partial(_ready, session, provider), on=Transient, deadline=Deadline(SEEN_SECONDS), backoff=Backoff(0.2, 1.0)
    )  # fmt: skip
    record_host(session, provider, record.name)
    session.screen.message(f"{record.name} ({provider}) is Ready after {session.screen.elapsed()}")
    return 0


def _package(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise ConfigError(f"--package {path} is no Debian package")
    except OSError as error:
        raise ConfigError(f"--package {path} cannot be read: {error.strerror}") from None
    return path


def _install(session: Session, remote: Remote, package: Path) -> None:
    session.screen.progress(f"installing {package.name} on {remote.target}, with what it needs")
    with package.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        answer = remote.run(INSTALL.format(digest=digest), seconds=INSTALL_SECONDS, given=file)
    if answer.exit_code:
        raise Permanent(
            f"{remote.target}: {package.name} could not be installed: {answer.last_words or 'apt-get said nothing'}"
        )
    session.screen.message(f"{remote.target}: {package.name} is installed")


def _have_join(session: Session, remote: Remote, token: str, wait_seconds: float, *, force: bool) -> UUID:
    """The provider of the host, once it says that it is Ready."""
    command = JOIN.format(seconds=wait_seconds, more=" --force" if force else "")
    with file_with(token.encode()) as given:
        answer = remote.run(
            command,
            seconds=wait_seconds + 120,
            given=given,
            relay=lambda line: session.screen.message(f"{remote.target}: {line}"),
        )
    if answer.exit_code:
        error = _ERRORS.get(answer.exit_code, Permanent)
        raise error(f"{remote.target} has not joined (exit code {answer.exit_code}): {answer.last_words or 'it said nothing'}")
    try:
        return UUID(json.loads(answer.last_line)["provider"])
    except (ValueError, KeyError, TypeError):
        raise Permanent(f"{remote.target} has joined and does not say as which host; see: eschedule hosts") from None


def _ready(session: Session, provider: UUID) -> HostRecord:
    session.interruption.check()
    item = session.store.get(session.keys.host(provider))
    record = HostRecord.from_json(item.value) if item else None
    if record is None or record.state is not HostState.READY:
        raise Transient(
            f"the host {provider} says that it is Ready, and is not in etcd as it is seen from here; see: eschedule hosts"
        )
    return record
