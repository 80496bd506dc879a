"""The commands ``image prefetch`` and ``image cache``: what hosts have of images, and having them fetch one ahead.

Hosts are asked by letters, which they answer at once (``common/image_letters``); who waits for a fetch asks again, less and
less often. A host goes on with a fetch though nobody asks any more.
"""

from __future__ import annotations

import argparse
import datetime
import time
import uuid as uuids
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from common.errors import ConfigError
from common.findings import Letter
from common.image_letters import CACHE, PREFETCH, CachedRow, CacheReport, FetchState, PrefetchReport
from common.keys import Keys
from common.model import ImageRef
from common.retry import Backoff, Deadline
from common.store import Store
from common.text import counted, escaped, nearest, quoted, shortened
from common.validate import is_image_name, parse_image, parse_seconds
from eschedule import image_registry, post, render
from eschedule.listing import host_names, silent_hosts
from eschedule.output import emit
from eschedule.screen import seconds_text
from eschedule.session import Session
from eschedule.tables import Coloured, Column, Look, table

ANSWER_SECONDS = 15.0  # a host reads all its disks for the list
_MOST_SILENCES = 3  # in a row, before a host is given up: it may be restarted meanwhile
_MIB = 1 << 20
_SILENT = "does not answer; see: eschedule hosts (a host of an earlier version does not know these letters)"


def living_hosts(store: Store, keys: Keys, wanted: str | None) -> dict[UUID, str]:
    """The names of the hosts that have a heartbeat, of those only that *wanted* lists by name or provider, if it does.

    Raises:
        ConfigError: one that is listed is not among them, or several are called so.
    """
    alive = {keys.parse_host(item.key): item for item in store.list(keys.hosts()).items}
    names = {provider: host.name for provider, host in host_names(store, keys, alive, alive).items()}
    if wanted is None:
        return names
    chosen = {}
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        found = [provider for provider, name in names.items() if word.lower() == str(provider) or word == name]
        if len(found) != 1:
            near = nearest(word, names.values())
            fault = f"there are {len(found)} hosts" if found else "no host with a heartbeat is called"
            raise ConfigError(
                f"{fault} {quoted(word)}; {f'did you mean {near}?' if near and not found else 'see: eschedule hosts'}"
            )
        chosen[found[0]] = names[found[0]]
    if not chosen:
        raise ConfigError("--hosts names no host; give names or providers with commas between them")
    return chosen


# -- prefetch --------------------------------------------------------------------------------------------------------------


def prefetch(session: Session, options: argparse.Namespace) -> int:
    """Run ``image prefetch``; its exit code: 1 where a host cannot have the image, 4 where one did not say in time.

    Raises:
        ConfigError: image or hosts are none. Permanent: the name is not registered.
        StoreUnavailable: etcd did not answer.
    """
    wait_seconds = parse_seconds(options.wait_seconds or str(session.config.wait_seconds), "--wait-seconds")
    image = _image(session, options)
    hosts = living_hosts(session.store, session.keys, options.hosts)
    if not hosts:
        raise ConfigError("there is no host with a heartbeat; see: eschedule hosts")
    fetch = _Prefetch(session, image, hosts)
    fetch.run(0.0 if options.no_wait else wait_seconds)
    emit(session.screen, options, fetch.as_json, fetch.table)
    return fetch.exit_code(may_go_on=options.no_wait)


def _image(session: Session, options: argparse.Namespace) -> ImageRef:
    if not is_image_name(options.image):
        return parse_image(options.image, options.checksum)
    if options.checksum:
        raise ConfigError("--checksum is for addresses; a registered image has its own")
    return image_registry.registered(session.store, session.keys, options.image).ref


class _Prefetch:
    """One image on its way to *hosts*."""

    def __init__(
        self, session: Session, image: ImageRef, hosts: Mapping[UUID, str], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session, self._hosts, self._sleep = session, hosts, sleep
        self._known: dict[UUID, PrefetchReport] = {}
        self._silences = dict.fromkeys(hosts, 0)
        checksum = (image.checksum,) if image.checksum else ()
        self._letter = Letter(PREFETCH, {"url": (image.url,), "checksum": checksum, "request": (str(uuids.uuid4()),)})

    def run(self, wait_seconds: float) -> None:
        """Ask until all is over, at most so long, and at least once."""
        session, deadline, backoff = self._session, Deadline(wait_seconds, self._session.clock), Backoff(0.5, 5.0)
        while True:
            pending = {host for host in self._hosts if not self._is_over(host)}
            patience = Deadline(max(min(ANSWER_SECONDS, deadline.remaining()), 2.0), session.clock)
            read = PrefetchReport.from_json
            self._note(pending, post.answers(session.store, session.keys, pending, self._letter, patience, read=read))
            if all(map(self._is_over, self._hosts)) or deadline.expired:
                return
            session.screen.progress(self._progress())
            session.interruption.check()
            self._sleep(min(backoff.next(), deadline.remaining()))

    def _note(self, asked: Iterable[UUID], reports: Mapping[UUID, PrefetchReport]) -> None:
        for host in asked:
            report = reports.get(host)
            self._silences[host] = 0 if report else self._silences[host] + 1
            if report:
                self._known[host] = report
                if report.state.is_over:
                    self._session.screen.message(f"{self._hosts[host]}: {escaped(_result(report))}")

    def _is_over(self, host: UUID) -> bool:
        report = self._known.get(host)
        return self._silences[host] >= _MOST_SILENCES or (report is not None and report.state.is_over)

    def _progress(self) -> str:
        going = [(self._hosts[host], report) for host, report in self._known.items() if not report.state.is_over]
        here = sum(report.state is FetchState.HERE for report in self._known.values())
        parts = [f"{name} {_amount(report)}" for name, report in sorted(going)[:4]]
        return f"here on {here} of {counted(len(self._hosts), 'host')}; {', '.join(parts)}"

    def exit_code(self, *, may_go_on: bool) -> int:
        """*may_go_on*: it is enough that every host fetches it."""
        states = {
            self._known[host].state if self._known.get(host) and not self._silences[host] else None for host in self._hosts
        }
        if FetchState.FAILED in states:
            return 1
        well = {FetchState.HERE, FetchState.WAITING, FetchState.FETCHING} if may_go_on else {FetchState.HERE}
        return 0 if states <= well else 4

    def table(self, look: Look) -> str:
        rows = [(name, *self._row(host)) for host, name in sorted(self._hosts.items(), key=lambda item: item[1])]
        return table((Column("HOST", 12), "STATE", Column("RESULT", 24)), rows, look)

    def _row(self, host: UUID) -> tuple[str | Coloured, str]:
        report = self._known.get(host)
        if report is None or self._silences[host]:
            return Coloured("silent", "red"), _SILENT
        colour = {FetchState.HERE: "green", FetchState.FAILED: "red", FetchState.UNAVAILABLE: "red"}.get(report.state, "yellow")
        return Coloured(str(report.state), colour), _result(
            report
        ) if report.state.is_over else f"{_amount(report)}; it goes on"

    def as_json(self) -> list[dict[str, Any]]:
        """The shape is documented in ``docs/json``: fields are added, never renamed."""
        rows = []
        for host, name in sorted(self._hosts.items(), key=lambda item: item[1]):
            report = self._known.get(host)
            state = "silent" if report is None or self._silences[host] else str(report.state)
            known = report or PrefetchReport(host, name, FetchState.WAITING)
            rows.append(
                {"name": name, "provider": str(host), "state": state, "done_bytes": known.done, "total_bytes": known.total,
                 "digest": f"sha256:{known.digest}" if known.digest else None, "message": known.message}
            )  # fmt: skip
        return rows


def _result(report: PrefetchReport) -> str:
    return f"here as sha256:{report.digest[:12]}" if report.state is FetchState.HERE else report.message or str(report.state)


def _amount(report: PrefetchReport) -> str:
    if report.state is FetchState.WAITING:
        return "waits for other images"
    if report.total <= 0:
        return f"{report.done / _MIB:.1f} MiB"
    return f"{report.done / _MIB:.1f} of {report.total / _MIB:.1f} MiB ({min(100, 100 * report.done // report.total)} %)"


# -- cache -----------------------------------------------------------------------------------------------------------------


def cache(session: Session, options: argparse.Namespace) -> int:
    """Run ``image cache``; its exit code: 4 where a host did not answer.

    Raises:
        ConfigError: a host is none.
        StoreUnavailable: etcd did not answer.
    """
    hosts = living_hosts(session.store, session.keys, options.hosts)
    session.screen.progress(f"waiting for {counted(len(hosts), 'host')}")
    deadline = Deadline(ANSWER_SECONDS, session.clock)
    reports = post.answers(session.store, session.keys, hosts, Letter(CACHE), deadline, read=CacheReport.from_json)
    names = _registered_names(session.store, session.keys)
    told = sorted((hosts[host], host, report) for host, report in reports.items())
    emit(
        session.screen, options, lambda: [_host_json(name, host, report, names) for name, host, report in told],
        lambda look: _cache_table([(name, row) for name, _, report in told for row in report.images], names, look),
    )  # fmt: skip
    for name, _, report in told:
        if report.problem:
            session.screen.warning(f"{name}: nobody can say what rests on its images: {report.problem}")
        if report.left_out:
            session.screen.warning(f"{name}: {counted(report.left_out, 'more image')} did not fit into its answer")
    for host in sorted(hosts.keys() - reports.keys(), key=hosts.__getitem__):
        session.screen.warning(f"{hosts[host]} {_SILENT} (waited {seconds_text(ANSWER_SECONDS)})")
    silent = [] if options.hosts else silent_hosts(session.store, session.keys, hosts)
    for name in silent:
        session.screen.warning(f"{name} has no heartbeat, and does not answer; look: eschedule hosts")
    return 4 if silent or hosts.keys() - reports.keys() else 0


def _cache_table(rows: Iterable[tuple[str, CachedRow]], names: Mapping[str, list[str]], look: Look) -> str:
    now = datetime.datetime.now(datetime.UTC)
    columns = (
        Column("HOST", 12), Column("IMAGE", 20), "DIGEST", "SIZE_MB", "USED", "INSTANCES", "PINNED",
        Column("SOURCES", is_wide=True),
    )  # fmt: skip
    return table(columns, [_cells(host, row, names, now) for host, row in rows], look)


def _registered_names(store: Store, keys: Keys) -> dict[str, list[str]]:
    """The registered names by checksum; those that cannot be read are passed over."""
    names: dict[str, list[str]] = {}
    for row in image_registry.listed(store, keys):
        if row.record is not None:
            names.setdefault(row.record.checksum, []).append(row.name)
    return names


def _names_of(row: CachedRow, names: Mapping[str, list[str]]) -> list[str]:
    return sorted({name for checksum in (f"sha256:{row.digest}", *row.checksums) for name in names.get(checksum, ())})


def _cells(host: str, row: CachedRow, names: Mapping[str, list[str]], now: datetime.datetime) -> tuple[str, ...]:
    sources = ", ".join(row.sources)
    shown = ", ".join(_names_of(row, names)) or sources
    instances = "?" if row.instances < 0 else str(row.instances)
    size, pinned = str(round(row.taken_bytes / _MIB)), "yes" if row.is_pinned else ""
    return (host, shortened(shown, 100), row.digest[:12], size, render.age(row.used_at, now), instances, pinned, sources)


def _host_json(name: str, host: UUID, report: CacheReport, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return {
        "name": name,
        "provider": str(host),
        "max_bytes": report.most_bytes or None,
        "problem": report.problem,
        "left_out": report.left_out,
        "images": [
            {"names": _names_of(row, names), "digest": f"sha256:{row.digest}", "format": row.format,
             "bytes": row.taken_bytes, "used_at": row.used_at, "instances": None if row.instances < 0 else row.instances,
             "is_pinned": row.is_pinned, "sources": list(row.sources), "checksums": list(row.checksums)}
            for row in report.images
        ],
    }  # fmt: skip
