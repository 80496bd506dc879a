"""Keeps the packet filter as the instances of this host want it: what each has is a file, and the kernel follows.

``<directory>/<uuid>.json`` is what holds for an instance; it is written before the kernel is told, and survives a reboot of the
host and a loss of etcd, so that a guest whose spec is lost stays as shut as it was. The kernel is told of all instances in one
change, and asked for its generation (no process) and, when that is another, for our tables, so that whatever a reboot, a flush
or somebody's own firewall took away comes back. Instances that ask for nothing are not here and cost nothing. One process per
directory; thread-safe, but for two threads with one instance. Called by the builder, the facts, the agent and ``leave``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.errors import EcomputeError, InvalidSpec, Transient
from common.files import file_errors, fsync_directory, make_directory, remove_partials, write_atomically
from common.logs import fields
from common.model import Address, InstanceSpec
from ecompute.firewall import (
    GuestRules,
    Port,
    Way,
    bridge_rules,
    closed,
    forward_rules,
    interface_name,
    is_asked_for,
    judged,
    mac_of,
    unmet,
    wished,
)
from ecompute.nft import FirewallMissing, Nftables, PacketFilter
from ecompute.taken_ports import listening_ports

logger = logging.getLogger(__name__)
DIRECTORY_MODE = 0o700
FILTER = "bridge"
FAMILIES = (FILTER, "ip", "ip6")
MOST_TRIALS = 64  # to find those whose rules are refused; some 10 ms each
# What any host can that can this at all: where it is refused too, it is not a guest's rules that are.
_PROBE = GuestRules(UUID(int=0), "", (), ("lo",), (Way("tcp", 9, 9, "192.0.2.1"), Way("tcp", 9, 9, "2001:db8::1")))
_OBJECT = re.compile(r"^\t(chain|set) (\S+) \{", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """How it stands with one instance: whether what it asks for is in force, and a line for each thing that cannot be."""

    is_current: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Table:
    """A table as it was loaded, and how the kernel shows it."""

    text: str
    listing: str
    generation: int


def interfaces_of(mac: str, directory: Path = Path("/sys/class/net")) -> frozenset[str]:
    """The host's interfaces that lead to the card with *mac*: the one that it is given by name, and the one that it has.

    A guest that was started before anything of it was filtered has one that libvirt named; libvirt gives it the card's own MAC,
    but for its first byte.
    """
    named = interface_name(mac)
    if (directory / named).exists():
        return frozenset({named})
    found = {named}
    for path in directory.glob("*/tun_flags"):
        try:
            if (path.parent / "address").read_text().strip()[2:] == mac.lower()[2:]:
                found.add(path.parent.name)
        except OSError:  # it went away meanwhile
            continue
    return frozenset(found)


class FirewallKeeper:
    """The filters and forwards of one host's instances.

    Args:
        directory: of the files; made when the first is written.
        interfaces, listening: what is asked of the host, for tests.
    """

    def __init__(
        self, directory: Path, kernel: PacketFilter | None = None, *,
        interfaces: Callable[[str], Collection[str]] = interfaces_of,
        listening: Callable[[], Collection[Port]] = listening_ports,
    ) -> None:  # fmt: skip
        self._directory, self._kernel = directory, kernel or Nftables()
        self._interfaces, self._listening = interfaces, listening
        self._lock, self._changing = threading.Lock(), threading.Lock()
        self._deciding = threading.Lock()  # who has a port: of two that want it, one comes first
        self._rules = _read_all(directory, self._kernel)
        self._unseen = set(FAMILIES if directory.is_dir() else ())  # where a table of a former process may be
        self._leaving: set[UUID] = set()
        self._version = self._applied = 0  # of what is wanted, and of what the kernel was last told
        self._told: dict[UUID, GuestRules] = {}  # the latter
        self._tables: dict[str, _Table] = {}
        self._problems: dict[str, FirewallMissing] = {}
        self._refused: dict[str, dict[UUID, str]] = {}  # by family: those whose rules alone the kernel does not take, and why

    # -- one instance ------------------------------------------------------------------------------------------------------

    def has(self, uuid: UUID) -> bool:
        """Whether there is anything of the instance to ``remove``."""
        with self._lock:
            return uuid in self._rules

    def rules_of(self, uuid: UUID) -> GuestRules | None:
        with self._lock:
            return self._rules.get(uuid)

    def all_rules(self) -> dict[UUID, GuestRules]:
        """What holds for each instance, those that are gone from everywhere else included."""
        with self._lock:
            return dict(self._rules)

    def look(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> Look:
        """Whether what *spec* asks for is in force."""
        if not is_asked_for(spec):
            return Look(not self.has(spec.uuid))
        try:
            rules, notes = self._judged(spec, addresses)
        except InvalidSpec:
            return Look(False)  # ``write`` says why
        missing = {family for family in rules.families if not self._holds(family)}
        problems = {family: str(self._problems[family]) for family in missing if family in self._problems}
        with self._lock:
            refused = {family: why for family in rules.families if (why := self._refused.get(family, {}).get(spec.uuid))}
        # Without a forward a guest is as good as before, and its note says what is missing; without its filter it is not.
        is_in_force = all(family in problems and family != FILTER for family in missing)
        with self._lock:
            is_told = self._rules.get(spec.uuid) == rules == self._told.get(spec.uuid)
        is_in_force = is_in_force and FILTER not in refused
        return Look(is_told and is_in_force, (*notes, *dict.fromkeys([*problems.values(), *refused.values()])))

    def write(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> tuple[str, ...]:
        """Put what *spec* asks for in force, or as much as can be had; the notes about the rest.

        Raises:
            InvalidSpec: nobody can read its rules.
            FirewallMissing: it is to be filtered, and this host cannot.
            Transient, NoSpace: as the kernel or the file system says.
        """
        if not is_asked_for(spec):
            self.remove(spec.uuid)
            return ()
        before, rules = self._take(spec, addresses)
        try:
            make_directory(self._directory, DIRECTORY_MODE)
            write_atomically(self._path(spec.uuid), rules.to_json().encode())
        except BaseException:
            self._set(spec.uuid, before)
            raise
        self._tell()
        if rules.is_filtered and (problem := self._problems.get(FILTER)):
            raise FirewallMissing(f"the instance is to be filtered (allow), and this host cannot: {problem}")
        with self._lock:
            why = self._refused.get(FILTER, {}).get(spec.uuid)
        if rules.is_filtered and why:
            raise FirewallMissing(
                f"the instance is to be filtered (allow), and its own rules cannot be had, so it is shut: {why}"
            )
        return self.look(spec, addresses).notes

    def remove(self, uuid: UUID) -> None:
        """Take away what holds for the instance. Removing what is gone succeeds.

        Raises:
            Transient: the kernel did not answer, or still has something of it.
        """
        with self._lock:
            if (rules := self._rules.get(uuid)) is None:
                return
            self._leaving.add(uuid)
        self._tell()
        for family in sorted(rules.families & self._problems.keys()):
            if self._is_in_kernel(family, uuid):
                # Its address will be another's, to whom its port would lead then.
                raise Transient(f"its rules cannot be taken out of the packet filter: {self._problems[family]}")
        with file_errors("cannot remove the rules", path := self._path(uuid)):
            path.unlink(missing_ok=True)
            fsync_directory(self._directory)
        self._set(uuid, None)

    def _is_in_kernel(self, family: str, uuid: UUID) -> bool:
        try:
            listing = self._kernel.listing(family)
        except FirewallMissing:
            return False  # there is no nft, and so nobody who could have put it there, or could take it away
        return str(uuid) in listing or uuid.hex in listing

    def _take(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> tuple[GuestRules | None, GuestRules]:
        """Note what *spec* gets, so that nobody else gets the same port; what it had before, and what it has now."""
        with self._deciding:
            before = self.rules_of(spec.uuid)
            rules, _ = self._judged(spec, addresses)
            self._set(spec.uuid, rules)
        return before, rules

    def _set(self, uuid: UUID, rules: GuestRules | None) -> None:
        with self._lock:
            self._leaving.discard(uuid)
            self._rules.pop(uuid, None)
            if rules is not None:
                self._rules[uuid] = rules

    def _judged(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> tuple[GuestRules, tuple[str, ...]]:
        """What *spec* gets: its own ports it keeps, others only if they are free."""
        names = {name for card in addresses for name in self._interfaces(card.mac)} if spec.allow is not None else ()
        wish = wished(spec, addresses, names)
        with self._lock:
            known = self._rules.get(spec.uuid)
            others = {port: rules.name for uuid, rules in self._rules.items() if uuid != spec.uuid for port in rules.ports}
        own = known.ports if known else frozenset()
        listening = frozenset(self._listening()) - own if wish.ports - own else frozenset()
        rules, notes = judged(wish, others=others, listening=listening)
        return rules, (*notes, *unmet(spec, addresses))

    # -- all of them -------------------------------------------------------------------------------------------------------

    def keep(self, *, is_thorough: bool = True) -> None:
        """Put back what the kernel has lost. Asks nothing where no instance wants anything. Says each trouble once.

        Args:
            is_thorough: look though the kernel says that nothing has changed; it does not know the older iptables.
        """
        with self._lock:
            wanted = {family for rules in self._rules.values() for family in rules.families} | self._problems.keys()
        for family in FAMILIES:
            if family not in wanted | self._unseen:
                continue
            was_loaded, before = family in self._tables, self._problems.get(family)
            try:
                is_there = self._holds(family, is_thorough=is_thorough)
                if is_there and not (family == FILTER and self._has_stale_names()):
                    continue
                self._tell()
            except EcomputeError as error:
                logger.warning("rules of the packet filter could not be looked at: %s", error)
                continue
            problem = self._problems.get(family)
            if problem and str(problem) != str(before):
                logger.error("filters and forwards of guests are not in force: %s", problem)
            elif was_loaded and not is_there and not problem:
                logger.warning("rules of ours were gone from the packet filter and are there again: table %s", family)

    def remove_all(self) -> None:
        """Take everything of ours away: for a host that leaves, which has no instances any more."""
        with self._lock:
            for path in self._directory.glob("*.json"):
                path.unlink(missing_ok=True)
            self._rules.clear()
        try:
            for family in FAMILIES:
                if self._kernel.listing(family):
                    self._load(family, [])
        except FirewallMissing:
            return  # then there is nothing to take away either
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def _tell(self) -> None:
        """Have the kernel follow what is wanted; of several that wait, one tells it for all."""
        with self._lock:
            self._version += 1
            version = self._version
        with self._changing:
            if self._applied >= version:
                return
            with self._lock:
                version = self._version
                guests = [rules for uuid, rules in self._rules.items() if uuid not in self._leaving]
            for family in FAMILIES:
                self._bring(family, self._of(family, guests))
            with self._lock:
                self._applied, self._told = version, {rules.uuid: rules for rules in guests}

    def _of(self, family: str, guests: Iterable[GuestRules]) -> list[GuestRules]:
        """Those of *guests* that have a part in *family*, as the host is now."""
        found = [rules for rules in guests if family in rules.families]
        return [self._with_present_names(rules) for rules in found] if family == FILTER else found

    def _with_present_names(self, rules: GuestRules) -> GuestRules:
        """Without names that libvirt gave to another guest's card since: only those that we gave are a card's for ever."""
        macs = {name: mac for name in rules.interfaces if (mac := mac_of(name))}
        if len(macs) == len(rules.interfaces) or not macs:
            return rules
        there = macs.keys() | {name for mac in macs.values() for name in self._interfaces(mac)}
        return dataclasses.replace(rules, interfaces=tuple(name for name in rules.interfaces if name in there))

    def _has_stale_names(self) -> bool:
        with self._changing, self._lock:
            told = [rules for rules in self._told.values() if rules.is_filtered and not all(map(mac_of, rules.interfaces))]
        return any(self._with_present_names(rules) != rules for rules in told)

    def _bring(self, family: str, guests: list[GuestRules]) -> None:
        known = self._tables.get(family)
        if not guests and known is None and family not in self._problems and not self._has_leftovers(family):
            return  # nobody ever wanted anything of it
        is_as_told = guests and known is not None and known.text == _text(family, guests) and not self._refused.get(family)
        if known is not None and is_as_told and self._is_unchanged(family, known):
            return
        try:
            self._load(family, guests)
        except FirewallMissing as problem:
            self._problems[family] = problem
            self._tables.pop(family, None)
        else:
            self._problems.pop(family, None)

    def _has_leftovers(self, family: str) -> bool:
        """Whether a process before this one left a table behind; asked once, and only where there ever was one."""
        if family not in self._unseen:
            return False
        is_there = False
        with contextlib.suppress(FirewallMissing):
            is_there = bool(self._kernel.listing(family))
        self._unseen.discard(family)
        return is_there

    def _load(self, family: str, guests: list[GuestRules]) -> None:
        """Have the kernel's table be that of *guests*; of one whose rules are refused as much as lets nobody in."""
        refused, taken = dict[UUID, str](), guests
        try:
            self._kernel.load(_text(family, guests, self._objects(family)))
        except FirewallMissing as problem:
            refused = self._refused_of(family, guests, problem)
            taken = self._taken(family, guests, refused)
            self._tables.pop(family, None)
            # Where it is nobody's rules: somebody changed our table meanwhile, and its chains are to be read anew.
            self._kernel.load(_text(family, taken, self._objects(family)))
        self._note_refused(family, refused)
        if family != FILTER:
            self._kernel.let_through(family, is_wanted=bool(taken))
        self._unseen.discard(family)
        self._tables.pop(family, None)
        if guests:
            generation = self._kernel.generation()  # before the listing: what is changed in between is looked at again
            self._tables[family] = _Table(_text(family, guests), self._kernel.listing(family), generation)

    def _objects(self, family: str) -> list[tuple[str, str]]:
        """The chains and sets that the table has; the kernel is asked for them only where it has changed."""
        if family != FILTER:
            return []
        known = self._tables.get(family)
        is_known = known is not None and known.generation == self._kernel.generation() != -1
        return _OBJECT.findall(known.listing if known is not None and is_known else self._kernel.listing(family))

    def _note_refused(self, family: str, refused: dict[UUID, str]) -> None:
        with self._lock:
            before, self._refused[family] = self._refused.get(family, {}), refused
        for uuid in sorted(refused.keys() - before.keys()):
            logger.error(
                "rules of one guest are refused, and those of all others stand: %s", refused[uuid], extra=fields(instance=uuid)
            )

    # -- rules that the kernel refuses -------------------------------------------------------------------------------------

    def _refused_of(self, family: str, guests: list[GuestRules], problem: FirewallMissing) -> dict[UUID, str]:
        """Whose rules they are that were refused.

        Raises:
            FirewallMissing: *problem*; this host can do nothing of it.
        """
        if not guests or self._trial(family, [_PROBE]) is not None:
            raise problem
        with self._lock:
            stood = {g.uuid for g in guests if self._told.get(g.uuid) == g and g.uuid not in self._refused.get(family, {})}
        trials = iter(range(MOST_TRIALS))
        news, others = [g for g in guests if g.uuid not in stood], [g for g in guests if g.uuid in stood]
        return self._search(family, news, trials) | self._search(family, others, trials)

    def _search(self, family: str, guests: list[GuestRules], trials: Iterator[int]) -> dict[UUID, str]:
        why = self._trial(family, guests) if guests else None
        if why is None:
            return {}
        if len(guests) == 1 or next(trials, None) is None:
            return {rules.uuid: why for rules in guests}
        middle = len(guests) // 2
        return self._search(family, guests[:middle], trials) | self._search(family, guests[middle:], trials)

    def _taken(self, family: str, guests: list[GuestRules], refused: Collection[UUID]) -> list[GuestRules]:
        taken = [rules for rules in guests if rules.uuid not in refused]
        shut = [closed(rules) for rules in guests if rules.uuid in refused and family == FILTER]
        return taken if shut and self._trial(family, shut) is not None else [*taken, *shut]

    def _trial(self, family: str, guests: list[GuestRules]) -> str | None:
        """Why the kernel would refuse the rules of *guests*; None where it would not."""
        try:
            self._kernel.load(_text(family, guests), is_trial=True)
        except FirewallMissing as problem:
            return str(problem)
        return None

    def _holds(self, family: str, *, is_thorough: bool = False) -> bool:
        """Whether the kernel has our table of *family* as it was loaded."""
        known = self._tables.get(family)
        if known is not None and not is_thorough and known.generation == self._kernel.generation() != -1:
            return True  # who looks does not wait for who changes
        with self._changing:
            known = self._tables.get(family)
            return known is not None and self._is_unchanged(family, known, is_thorough=is_thorough)

    def _is_unchanged(self, family: str, known: _Table, *, is_thorough: bool = False) -> bool:
        """Also puts our rule back before those of others. The older iptables has no generation: look thoroughly at times."""
        generation = self._kernel.generation()
        if generation == known.generation != -1 and not is_thorough:
            return True
        try:
            if self._kernel.listing(family) != known.listing:
                return False
            if family != FILTER and self._kernel.let_through(family, is_wanted=True):
                logger.warning("somebody's rules stood before the one that lets forwards through; it is in front again")
                generation = self._kernel.generation()
        except FirewallMissing:
            return False  # whoever loads it anew learns what is missing
        self._tables[family] = _Table(known.text, known.listing, generation)
        return True

    def _path(self, uuid: UUID) -> Path:
        return self._directory / f"{uuid}.json"


def _text(family: str, guests: Iterable[GuestRules], known: Collection[tuple[str, str]] = ()) -> str:
    return bridge_rules(guests, known=known) if family == FILTER else forward_rules(family, guests)


def _read_all(directory: Path, kernel: PacketFilter) -> dict[UUID, GuestRules]:
    """What the files say. One that cannot be read is reported and left; its guest stays shut until its pass writes it anew."""
    found = {}
    with file_errors("cannot read the rules of guests", directory):
        if not directory.is_dir():
            return {}
        remove_partials(directory)
        for path in sorted(directory.glob("*.json")):
            content = path.read_bytes()
            try:
                rules = GuestRules.from_json(content.decode())
            except (EcomputeError, UnicodeError) as error:
                logger.error("the rules of an instance cannot be read from %s: %s", path, error)
                if (stand_in := _stand_in(path, content, kernel)) is None:
                    continue
                rules = stand_in
            found[rules.uuid] = rules
    return found


def _stand_in(path: Path, content: bytes, kernel: PacketFilter) -> GuestRules | None:
    """What shuts the guest of a file that cannot be read, damaged or a newer version's, as far as its cards can be found."""
    try:
        uuid = UUID(path.stem)
        names = set(re.findall(rf'"([^"]+)" : jump in_{uuid.hex}', kernel.listing(FILTER)))
    except (ValueError, EcomputeError):
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        raw = json.loads(content)
        if raw["allow"] is not None:
            names |= {name for name in raw["interfaces"] if isinstance(name, str)}
    return GuestRules(uuid, str(uuid), (), tuple(sorted(names))) if names else None
