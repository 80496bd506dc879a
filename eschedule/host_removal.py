"""Taking a host out of the cluster, from anywhere: nothing of it stays in etcd or Placement.

A host that lives is told by a letter, and does the work itself: it knows what it has on its own disk, and must not enter itself
anew behind our back. What it has not done when it dies, or the whole where it is dead already, is done from here, in an order
in which a crash leaves the rest for the next call: Placement first, since no claim can be made then, the keys in a transaction
that compares that the host has neither a heartbeat nor a request. Usable as a library; it prints nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.errors import Conflict, EcomputeError, Transient
from common.findings import Letter
from common.keys import Keys
from common.model import HostRecord, InstanceKey
from common.placement import Placement
from common.retry import Backoff, Deadline, retry
from common.store import Compare, Store, Transaction
from common.text import counted
from common.volume_records import VolumeSpec
from eschedule import post
from eschedule.listing import HostName, find_host

ANSWER_SECONDS = 15.0  # a host lists its guests for it; a busy libvirtd takes its time
NAMED_AT_MOST = 10
_KEYS_AT_ONCE = 50  # of a transaction, which etcd lets have 128 operations


class _NotYet(Transient):
    """The host is still about to leave."""


@dataclass(frozen=True)
class Removal:
    """Where a host is removed from, and who wants it."""

    store: Store
    keys: Keys
    placement: Placement
    by: str
    pulse: Callable[[], None] = lambda: None
    """Called often while it waits; may raise."""

    def find(self, who: str) -> HostName:
        """The host that has the name or the provider *who*.

        Raises:
            Permanent: there is none.
            ConfigError: there are several.
        """
        return find_host(self.store, self.keys, who)

    def remove(self, host: HostName, wait_seconds: float) -> bool:
        """Take *host* out; whether it did that itself.

        Raises:
            Conflict: it has instances or claims, or is given some; nothing was changed.
            Transient: a service or the host did not answer; repeating it is safe, and goes on.
        """
        self.refuse_in_use(host)
        has_left = host.is_alive and self._ask_to_leave(host, wait_seconds)
        self._finish(host)
        return has_left

    def refuse_in_use(self, host: HostName) -> None:
        """Raises: Conflict: a request or a claim is on *host*."""
        provider, names = host.provider, dict[UUID, str]()
        for item in self.store.list(self.keys.instances()).items:
            with contextlib.suppress(EcomputeError, ValueError):  # the audit names what cannot be read
                known = InstanceKey.from_json(item.value)
                if known.provider == provider:
                    names[UUID(item.key.removeprefix(self.keys.instances()))] = known.name
        for item in self.store.list(self.keys.specs(provider)).items:
            uuid = self.keys.parse_provider_instance(item.key)[1]
            names.setdefault(uuid, str(uuid))
        if names:
            shown = sorted(names.values())
            cure = f"destroy them first: eschedule destroy {' '.join(shown[:NAMED_AT_MOST])}"
            raise _in_use(host, f"{counted(len(names), 'instance')} ({_some(shown)})", cure)
        if volumes := self._volumes(provider):
            cure = f"copy what is in them elsewhere, and remove them: eschedule volume rm {volumes[0]}"
            raise _in_use(host, f"{counted(len(volumes), 'volume')} ({_some(volumes)})", cure)
        if claims := self.placement.provider_allocations(provider):
            raise Conflict(
                f"Placement has {counted(len(claims), 'claim')} on {host.name} that no instance there has "
                f"({_some(sorted(map(str, claims)))}): a request may be under way, then try again; else: eschedule audit"
            )

    def _volumes(self, provider: UUID) -> list[str]:
        """The names of the volumes on *provider*; of one that cannot be read its uuid."""
        names = []
        for item in self.store.list(self.keys.volumes(provider)).items:
            try:
                names.append(VolumeSpec.from_json(item.value).name)
            except EcomputeError:
                names.append(str(self.keys.parse_provider_volume(item.key)[1]))
        return sorted(names)

    def _ask_to_leave(self, host: HostName, wait_seconds: float) -> bool:
        """Have *host* leave; False where it died before it was done.

        Raises:
            Conflict: it refuses. Transient: it lives and does not answer, or does not end.
        """
        was = self.store.get(self.keys.host(host.provider))
        letter = Letter("leave", {"by": (self.by,)})
        patience = min(ANSWER_SECONDS, wait_seconds)
        report = post.ask(self.store, self.keys, [host.provider], letter, Deadline(patience)).get(host.provider)
        if report is None:
            if self.store.get(self.keys.host(host.provider)) is None:
                return False
            raise Transient(
                f"{host.name} has a heartbeat and does not answer within {patience:g} s: restart ecompute there, or "
                "have it leave by hand (there: systemctl disable --now ecompute, then ecompute --leave); where that machine is "
                "lost, wait until eschedule hosts says that it is dead, then repeat this"
            )
        if report.problems:
            raise Conflict(f"{host.name} does not leave: {report.problems[0]}")
        incarnation = HostRecord.from_json(was.value).incarnation if was else None
        try:
            retry(
                lambda: self._look_whether_gone(host, incarnation), on=_NotYet, deadline=Deadline(wait_seconds),
                backoff=Backoff(0.1, 0.5),
            )  # fmt: skip
        except _NotYet:
            if self.store.get(self.keys.host(host.provider)) is None:
                return False
            raise Transient(
                f"{host.name} said that it leaves, and still has a heartbeat after {wait_seconds:g} s: see the log of ecompute "
                "there, then repeat this"
            ) from None
        return True

    def _look_whether_gone(self, host: HostName, incarnation: UUID | None) -> None:
        self.pulse()
        keys = self.keys.owner(host.provider), self.keys.host(host.provider)
        found = self.store.get_many(keys)
        living = found.get(keys[1])
        if living is not None and HostRecord.from_json(living.value).incarnation != incarnation:
            raise Conflict(f"{host.name} did not leave and serves again: see the log of ecompute there, or eschedule list")
        if keys[0] in found:
            raise _NotYet(f"{host.name} is leaving")

    def _finish(self, host: HostName) -> None:
        """Take away what is left of *host*, which has no heartbeat.

        Raises:
            Conflict: it has one again, or was given an instance.
        """
        provider, keys = host.provider, self.keys
        if self.store.get(keys.host(provider)) is not None:
            raise Conflict(f"{host.name} has a heartbeat again; repeat this")
        self.refuse_in_use(host)
        self.placement.delete_provider(provider)
        left = [item.key for item in self.store.list(keys.statuses(provider)).items]
        last = [key for key in (keys.host_admin(provider), keys.owner(provider)) if self.store.get(key) is not None]
        empty = (Compare.none_newer(prefix, 0) for prefix in (keys.specs(provider), keys.volumes(provider)))
        is_nobodys = (Compare.absent(keys.host(provider)), *empty)
        batches = [left[begin : begin + _KEYS_AT_ONCE] for begin in range(0, len(left), _KEYS_AT_ONCE)]
        for batch in filter(None, [*batches, last]):
            try:
                self.store.commit(Transaction(is_nobodys, deletes=tuple(batch)))
            except Conflict:
                raise Conflict(f"{host.name} came back, or was given an instance, in just this moment; repeat this") from None


def _in_use(host: HostName, what: str, cure: str) -> Conflict:
    """That *host* has *what*. One that is dead cannot do what would cure that: a machine has to do it in its place."""
    if host.is_alive:
        return Conflict(f"{host.name} still has {what}: {cure}")
    return Conflict(
        f"{host.name} still has {what}, and no heartbeat: bring it back, and {cure}; where it is gone for good, a new machine "
        f"does that in its place, with `uuid: {host.provider}` in its compute.yaml and, once, ecompute --take-provider"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (", …" if len(names) > NAMED_AT_MOST else "")
