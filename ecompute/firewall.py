"""Which packets reach a guest, and which ports of the host lead to it: what a spec asks for, as rules of nftables. Pure.

``wished`` is what a spec and its addresses ask for, ``judged`` what of it can be had beside the other instances, and
``bridge_rules`` and ``forward_rules`` are the tables of all instances together, as text for ``nft -f``. ``FirewallKeeper``
calls them; nothing here knows a file, a process or libvirt.

The filter is a table of the family *bridge*, whose last hook sees every packet on its way into a guest's interface: routed,
sent by the host, or bridged from the guest next door. It needs no connection tracking there, which many kernels do not have
for bridges: of TCP it refuses the packet that opens a connection and no other, and what a guest sends by UDP is remembered
for the answers, three minutes long, in sets that a new version of the rules leaves as they are.

Forwards are address translation in a table of the families *ip* and *ip6*. What else filters on the host knows their
connections by a bit pattern in the connection's mark.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from common.errors import ConfigError, InvalidSpec
from common.model import SCHEMA, Address, Forward, InstanceSpec, Record
from common.nics import AddressSource
from common.port_notes import PortTrouble, port_note
from common.validate_access import PROTOCOLS, AllowRule, parse_allow_rule

TABLE = "etcd_compute"
MARK = 0x00EC0000  # in the mark of a connection that a forward made; bits, so that those of others can stand beside it
ANSWERS_FOR = "3m"  # how long after a guest's last packet by UDP answers come in; conntrack's own figure for a stream is 2
MOST_ANSWERS = 8192  # remembered at a time, for each guest and family, so that no guest takes the kernel's memory
MOST_REMEMBERED = 2048  # guests, and what is made of their rules; a host has fewer

# On these addresses of the host no port leads to a guest: its own, and those at which guests ask for metadata.
_KEPT = {"ip": "127.0.0.0/8, 169.254.0.0/16", "ip6": "::1, fe80::/10, fd00:ec2::254"}
_ICMP = "echo-reply, destination-unreachable, time-exceeded, parameter-problem"
_ICMP6 = (
    "echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem, nd-neighbor-solicit, "
    "nd-neighbor-advert, nd-router-advert, mld-listener-query"
)

# What comes in whatever the rules are; once for all guests, since each rule of each guest costs time at every change.
_ALWAYS = (
    "chain always {",
    "\tether type arp accept",
    "\ttcp flags & (syn | ack) != syn accept",  # all but what opens a connection
    f"\ticmp type {{ {_ICMP} }} accept",
    f"\ticmpv6 type {{ {_ICMP6} }} accept",
    "\tudp sport 67 udp dport 68 accept",  # DHCP: the answer comes to an address that never asked
    "\tudp sport 547 udp dport 546 accept",
    # The later pieces of a packet name no port. Without its first piece, which does, they are of no use to anybody; one that
    # would lie over the first piece's flags is none of them (RFC 1858).
    "\tip frag-off & 0x1fff > 1 accept",
    "\tfrag frag-off > 1 accept",
    "}",
)

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # Linux takes more; libvirt and we give none but these

Port = tuple[str, int]  # "tcp" or "udp", and the number


@dataclass(frozen=True)
class Way:
    """One forward to one address.

    Args:
        near: the network to which the guest answers past the host; the host speaks to it in its own name. "" for everybody:
            the guest's router is another than this host.
    """

    protocol: str
    host_port: int
    guest_port: int
    address: str
    near: str = ""

    @property
    def port(self) -> Port:
        return self.protocol, self.host_port

    @property
    def family(self) -> str:
        return "ip6" if ":" in self.address else "ip"


@dataclass(frozen=True)
class GuestRules(Record):
    """What holds for one instance; also the format of its file.

    Args:
        allow: who may reach it, as in the spec; None where nothing is filtered.
        interfaces: of the host, that lead to it; only where something is filtered.
        ways: the forwards that it has.
    """

    uuid: UUID
    name: str
    allow: tuple[str, ...] | None = None
    interfaces: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    schema: int = SCHEMA

    @property
    def ports(self) -> frozenset[Port]:
        return frozenset(way.port for way in self.ways)

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The ways as a spec asks for them."""
        return tuple(dict.fromkeys(Forward(way.host_port, way.guest_port, way.protocol) for way in self.ways))

    @property
    def is_filtered(self) -> bool:
        return self.allow is not None and bool(self.interfaces)

    @property
    def families(self) -> frozenset[str]:
        """The tables that it has a part in."""
        return frozenset(way.family for way in self.ways) | ({"bridge"} if self.is_filtered else set())


def is_asked_for(spec: InstanceSpec) -> bool:
    """Whether *spec* asks for anything of this at all."""
    return spec.allow is not None or bool(spec.forwards)


def interface_name(mac: str) -> str:
    """What the host's end of the card with *mac* is called where packets to it are filtered: known before the guest starts."""
    return "ec" + mac.lower().replace(":", "")


def mac_of(name: str) -> str:
    """The card's MAC, where *name* is one that ``interface_name`` gave; else ""."""
    return ":".join(re.findall("..", name[2:])) if re.fullmatch(r"ec[0-9a-f]{12}", name) else ""


# -- what is asked for, what can be had --------------------------------------------------------------------------------


def wished(spec: InstanceSpec, addresses: tuple[Address, ...], interfaces: Iterable[str]) -> GuestRules:
    """All that *spec* asks for.

    Args:
        interfaces: of the host, that lead to the guest.

    Raises:
        InvalidSpec: a rule that nobody can read, or an interface that there cannot be.
    """
    for text in spec.allow or ():
        _rule(text)
    targets = _targets(addresses)
    ways = (_way(forward, *target) for forward in spec.forwards for target in targets)
    rules = GuestRules(
        spec.uuid,
        spec.name,
        spec.allow,
        tuple(sorted(interfaces)) if spec.allow is not None else (),
        tuple(way for way in ways if _is_sound(way)),
    )
    if sound(rules) != rules:
        raise InvalidSpec(f"allow: the host's ends of its cards cannot be called {', '.join(map(repr, rules.interfaces))}")
    return rules


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def sound(rules: GuestRules) -> GuestRules:
    """*rules* without what nobody may put into a text for the kernel, wherever it came from; what is missing lets nobody in."""
    return dataclasses.replace(
        rules,
        allow=None if rules.allow is None else tuple(text for text in rules.allow if _is_rule(text)),
        interfaces=tuple(name for name in rules.interfaces if _INTERFACE.fullmatch(name)),
        ways=tuple(way for way in rules.ways if _is_sound(way)),
    )


def closed(rules: GuestRules) -> GuestRules:
    """Nobody is let in and no port leads there: for one whose rules the kernel does not take, or nobody can read."""
    return dataclasses.replace(rules, allow=() if rules.allow is not None else None, ways=())


def judged(wish: GuestRules, *, others: Mapping[Port, str], listening: Collection[Port]) -> tuple[GuestRules, tuple[str, ...]]:
    """*wish* without the ports that are somebody else's, and a line for each of those.

    Args:
        others: ports that lead to other instances, and their names.
        listening: ports at which a process of the host listens.
    """
    notes = {}
    for protocol, port in sorted(wish.ports):
        who = ""
        if name := others.get((protocol, port)):
            who = f"instance {name}; choose another"
        elif (protocol, port) in listening:
            option = "t" if protocol == "tcp" else "u"
            who = f"a process (ss -ln{option}p sport = :{port}); choose another, or stop that one"
        if who:
            notes[protocol, port] = port_note([(port, protocol)], PortTrouble.TAKEN, who)
    ways = tuple(way for way in wish.ways if way.port not in notes)
    return dataclasses.replace(wish, ways=ways), tuple(notes.values())


def unmet(spec: InstanceSpec, addresses: tuple[Address, ...]) -> tuple[str, ...]:
    """A line for what cannot come about as *spec* is: no address to lead to, or a port that its own rules keep shut."""
    if spec.forwards and not _targets(addresses):
        told = [card.bridge for card in addresses if card.source is AddressSource.LEARNED and card.all_addresses]
        why = "no address of the guest is known"
        if told:
            why = (
                f"the address of its card on {told[0]} is known from the guest alone, which could name any machine; create it "
                "with a fixed one (address=)"
            )
        ports = [(forward.host_port, forward.protocol) for forward in spec.forwards]
        return (port_note(ports, PortTrouble.NOWHERE, why),)
    if spec.allow is None:
        return ()
    rules = [_rule(text) for text in spec.allow]
    return tuple(
        port_note(
            [(forward.host_port, forward.protocol)],
            PortTrouble.SHUT,
            f"{forward.protocol}:{forward.guest_port}, which its rules let nobody reach; allow it",
        )
        for forward in spec.forwards
        if not any(_lets_in(rule, forward) for rule in rules)
    )


def _lets_in(rule: AllowRule, forward: Forward) -> bool:
    if rule.protocol == "all":
        return True
    return rule.protocol == forward.protocol and rule.first_port <= forward.guest_port <= rule.last_port


def _rule(text: str) -> AllowRule:
    try:
        return parse_allow_rule(text, "allow")
    except ConfigError as error:
        raise InvalidSpec(f"{error}; it was not written by this version's eschedule") from error


def _targets(addresses: tuple[Address, ...]) -> list[tuple[str, str]]:
    """The first address of each family that others can reach, and which network is near it.

    None that only the guest itself has told: with it the guest would choose to which machine the host's port leads.
    """
    found: dict[int, tuple[str, str]] = {}
    for card in addresses:
        if card.source is AddressSource.LEARNED:
            continue
        known = [(card.address, card.prefix_length)] if card.address else []
        known += [(more.address, more.prefix_length) for more in card.more]
        for text, prefix_length in known:
            try:
                interface = ipaddress.ip_interface((text, prefix_length))
            except ValueError:  # no prefix length that this family has, or no address
                continue
            if not prefix_length or "%" in text or interface.ip.is_link_local or interface.version in found:
                continue
            found[interface.version] = str(interface.ip), "" if card.bridge else str(interface.network)
    return [found[version] for version in sorted(found)]


def _way(forward: Forward, address: str, near: str) -> Way:
    return Way(forward.protocol, forward.host_port, forward.guest_port, address, near)


def _is_rule(text: str) -> bool:
    try:
        _rule(text)
    except InvalidSpec:
        return False
    return True


def _is_sound(way: Way) -> bool:
    """Whether it is what it says it is: the only way into the text for the kernel."""
    try:
        version = ipaddress.ip_address(way.address).version
        is_near = not way.near or ipaddress.ip_network(way.near).version == version
    except ValueError:
        return False
    are_ports = all(1 <= port <= 65535 for port in (way.host_port, way.guest_port))
    return is_near and are_ports and way.protocol in PROTOCOLS and "%" not in way.address + way.near


# -- the filter --------------------------------------------------------------------------------------------------------


def bridge_rules(guests: Iterable[GuestRules], *, known: Collection[tuple[str, str]] = ()) -> str:
    """What makes the table of the family bridge filter for *guests*, and for no others.

    Args:
        known: the chains and sets that the table has, as ("chain" or "set", name); those of guests that are not here go.
    """
    filtered = sorted((guest for guest in map(sound, guests) if guest.is_filtered), key=lambda guest: guest.uuid)
    if not filtered:
        return _removal("bridge")
    kept = {name for guest in filtered for name in _names(guest)} | {"always", "from_guests", "to_guests"}
    gone = [f"delete {kind} bridge {TABLE} {name}" for kind, name in sorted(known) if name not in kept]
    body = [*_ALWAYS, *(line for guest in filtered for line in _guest_lines(guest))]
    owners = {interface: guest.uuid.hex for guest in filtered for interface in guest.interfaces}
    hooks = (("from_guests", "prerouting", "iifname", "out"), ("to_guests", "postrouting", "oifname", "in"))
    for chain, hook, match, direction in hooks:
        jumps = ", ".join(f'"{interface}" : jump {direction}_{key}' for interface, key in sorted(owners.items()))
        body += [
            f"chain {chain} {{",
            f"\ttype filter hook {hook} priority filter; policy accept;",
            f"\t{match} vmap {{ {jumps} }}",
            "}",
        ]
    # Emptied, not deleted: the sets keep what guests have asked for, so that no answer is lost.
    return _text([f"add table bridge {TABLE}", f"flush table bridge {TABLE}", *gone, *_in_table("bridge", body)])


def _names(guest: GuestRules) -> tuple[str, ...]:
    key = guest.uuid.hex
    return f"in_{key}", f"out_{key}", f"asked4_{key}", f"asked6_{key}"


@functools.lru_cache(maxsize=MOST_REMEMBERED)
def _guest_lines(guest: GuestRules) -> tuple[str, ...]:
    """Remembered: at each change those of all guests are asked for, and mostly one is new."""
    return tuple(_lines_of(guest))


def _lines_of(guest: GuestRules) -> Iterator[str]:
    into, out, asked4, asked6 = _names(guest)
    for name, kind in ((asked4, "ipv4_addr"), (asked6, "ipv6_addr")):
        yield f"set {name} {{"
        yield f"\ttype {kind} . inet_service . {kind} . inet_service"
        yield f"\tsize {MOST_ANSWERS}; flags dynamic,timeout; timeout {ANSWERS_FOR};"
        yield "}"
    yield f"chain {out} {{"
    yield f"\tupdate @{asked4} {{ ip daddr . udp dport . ip saddr . udp sport }}"
    yield f"\tupdate @{asked6} {{ ip6 daddr . udp dport . ip6 saddr . udp sport }}"
    yield "}"
    yield f"chain {into} {{"
    yield "\tjump always"
    yield f"\tip saddr . udp sport . ip daddr . udp dport @{asked4} accept"
    yield f"\tip6 saddr . udp sport . ip6 daddr . udp dport @{asked6} accept"
    yield from (f"\t{line}" for text in guest.allow or () for line in _accepts(_rule(text)))
    yield "\tdrop"
    yield "}"


def _accepts(rule: AllowRule) -> Iterator[str]:
    source = ""
    if rule.source:
        source = f"{'ip6' if ':' in rule.source else 'ip'} saddr {rule.source} "
    if rule.protocol == "all":
        yield f"{source}accept"
    elif rule.protocol == "icmp":
        yield f"{source}meta l4proto icmp accept"
        yield f"{source}meta l4proto ipv6-icmp accept"
    else:
        last = f"-{rule.last_port}" if rule.last_port != rule.first_port else ""
        yield f"{source}{rule.protocol} dport {rule.first_port}{last} accept"


# -- forwards ----------------------------------------------------------------------------------------------------------


def forward_rules(family: str, guests: Iterable[GuestRules]) -> str:
    """What makes the table of *family* (ip, ip6) lead ports of the host to *guests*, and no others."""
    leading = [(guest, way) for guest in sorted(map(sound, guests), key=lambda guest: guest.uuid) for way in guest.ways]
    leading = [(guest, way) for guest, way in leading if way.family == family]
    if not leading:
        return _removal(family)
    mark = f"0x{MARK:08x}"
    to_guests = f"fib daddr type local {family} daddr != {{ {_KEPT[family]} }} jump forwards"
    body = ["chain forwards {"]
    for guest, way in leading:
        target = f"[{way.address}]" if family == "ip6" else way.address
        body.append(
            f"\t{way.protocol} dport {way.host_port} ct mark set ct mark or {mark} dnat to {target}:{way.guest_port} "
            f'comment "{guest.uuid}"'
        )
    # Who is on the guest's own network would get the answer from the guest directly, and not know it: the host speaks for it.
    nearby = dict.fromkeys((way.near, way.address) for _, way in leading)
    body += ["}", "chain nearby {"]
    body += [f"\t{f'{family} saddr {near} ' if near else ''}{family} daddr {address} masquerade" for near, address in nearby]
    body += [
        "}",
        *_hook("prerouting", "prerouting priority dstnat", to_guests),
        *_hook("output", "output priority -100", to_guests),
        *_hook("postrouting", "postrouting priority srcnat", f"ct status dnat ct mark and {mark} == {mark} jump nearby"),
    ]
    return _text([f"add table {family} {TABLE}", f"delete table {family} {TABLE}", *_in_table(family, body)])


def _hook(chain: str, hook: str, line: str) -> list[str]:
    return [f"chain {chain} {{", f"\ttype nat hook {hook}; policy accept;", f"\t{line}", "}"]


def _removal(family: str) -> str:
    return _text([f"add table {family} {TABLE}", f"delete table {family} {TABLE}"])


def _in_table(family: str, body: Iterable[str]) -> list[str]:
    return [f"table {family} {TABLE} {{", *(f"\t{line}" for line in body), "}"]


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
