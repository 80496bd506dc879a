"""Who may reach a guest, and how it is told of itself, as users write it: rules, ports, metadata access. Pure.

``AllowRule`` is the one reading of the grammar: what is kept in a spec is ``str`` of one, and whoever enforces it parses that.
Called through ``common/validate.py`` by the command line.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.errors import ConfigError
from common.model import ConfigDrive, Forward, MetadataAccess
from common.text import nearest, quoted

MOST_RULES = 64
MOST_FORWARDS = 32
MOST_HOPS = 64  # more routers than there are between a guest's programs and its host
PROTOCOLS = ("tcp", "udp")
NOTHING = "none"
_GRAMMAR = "tcp:PORT[-PORT], udp:PORT[-PORT], icmp or all, each with @CIDR behind it where only those may, or none"
_SERVICES = {"ssh": "tcp:22", "http": "tcp:80", "https": "tcp:443", "dns": "udp:53", "ping": "icmp", "rdp": "tcp:3389"}

Choice = TypeVar("Choice", MetadataAccess, ConfigDrive)


@dataclass(frozen=True)
class AllowRule:
    """What may come in.

    Args:
        protocol: "tcp", "udp", "icmp" (of both families) or "all".
        first_port, last_port: both included; 0 where the protocol has none.
        source: the network that it may come from in its normal form, "" for any.
    """

    protocol: str
    first_port: int = 0
    last_port: int = 0
    source: str = ""

    def __str__(self) -> str:
        last = f"-{self.last_port}" if self.last_port != self.first_port else ""
        ports = f":{self.first_port}{last}" if self.first_port else ""
        return f"{self.protocol}{ports}" + (f"@{self.source}" if self.source else "")


def parse_allow_rule(text: str, where: str = "--allow") -> AllowRule:
    """The rule that *text* is.

    Raises:
        ConfigError: it is none; one line.
    """
    what, at, source = text.partition("@")
    protocol, colon, ports = what.partition(":")
    if protocol not in (*PROTOCOLS, "icmp", "all"):
        raise ConfigError(f"{where} {quoted(text)} is no rule; {_meant(what)}")
    network = _network(source, f"{where} {quoted(text)}") if at else ""
    if protocol in PROTOCOLS:
        first, last = _ports(ports, f"{where} {quoted(text)}", protocol)
        return AllowRule(protocol, first, last, network)
    if colon:
        raise ConfigError(f"{where} {quoted(text)}: {protocol} has no ports; write {protocol} alone")
    return AllowRule(protocol, source=network)


def _meant(text: str) -> str:
    if text in _SERVICES:
        return f"write {_SERVICES[text]}"
    if re.fullmatch(r"[0-9]+(-[0-9]+)?", text):
        return f"write tcp:{text} or udp:{text}"
    if text == NOTHING:
        return "none stands alone: it lets nobody in"
    return f"it is {_GRAMMAR}"


def _ports(text: str, where: str, protocol: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not text or text == "*":
        raise ConfigError(f"{where} names no port; write {protocol}:22, {protocol}:8000-8100, or {protocol}:1-65535 for all")
    begin = _port(first, where)
    end = _port(last, where) if dash else begin
    if end < begin:
        raise ConfigError(f"{where}: the ports {begin}-{end} run backwards; write {end}-{begin}")
    return begin, end


def _port(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{where}: {quoted(text)} is no port; ports are whole numbers from 1 to 65535")
    return int(text)


def _network(text: str, where: str) -> str:
    if "%" in text:  # Python takes anything behind it as the name of an interface
        raise ConfigError(f"{where}: {quoted(text)} behind the @ has a scope (%), which a network has not; give it without")
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{where}: {quoted(text)} behind the @ is no network; it looks like 10.0.0.0/8 or fd00::/8") from None
    raise ConfigError(f"{where}: {text} has bits behind its prefix; write {wider}, or {text.partition('/')[0]} for that one")


def parse_allow(texts: Iterable[str], where: str = "--allow") -> tuple[str, ...]:
    """All rules in *texts*, each of which may hold several with commas between, each once; none of them for ``none``.

    Raises:
        ConfigError: one of them is none, or there are too many.
    """
    parts = [part.strip() for text in texts for part in text.split(",")]
    if parts == [NOTHING]:
        return ()
    if not all(parts):
        raise ConfigError(f"{where} has an empty rule; a rule is {_GRAMMAR}")
    rules = tuple(dict.fromkeys(str(parse_allow_rule(part, where)) for part in parts))
    if len(rules) > MOST_RULES:
        raise ConfigError(f"{where} has {len(rules)} rules, at most {MOST_RULES} are taken; put ports or networks together")
    return rules


def parse_forward(text: str, where: str = "--publish") -> Forward:
    """``[tcp:|udp:]HOSTPORT:GUESTPORT``, or with ``/tcp`` or ``/udp`` at the end.

    Raises:
        ConfigError: it is no such thing.
    """
    protocol, ports = _protocol(text, where)
    host, colon, guest = ports.partition(":")
    if not colon:
        raise ConfigError(f"{where} {quoted(text)} is no HOSTPORT:GUESTPORT; it looks like 8080:80 or udp:5353:53")
    if ":" in guest:
        raise ConfigError(
            f"{where} {quoted(text)} is no HOSTPORT:GUESTPORT: before it only tcp: or udp: may stand, as in udp:5353:53; no "
            "address can be given, the port is open at those of the host"
        )
    return Forward(_port(host, f"{where} {quoted(text)}"), _port(guest, f"{where} {quoted(text)}"), protocol)


def parse_host_port(text: str, where: str = "--rm") -> tuple[int, str]:
    """The port of a host and its protocol, as in ``parse_forward``, without the guest's port.

    Raises:
        ConfigError: it is no such thing.
    """
    protocol, ports = _protocol(text, where)
    host, colon, _ = ports.partition(":")
    if colon and host.isdecimal():
        raise ConfigError(f"{where} {quoted(text)} names two ports; give the host's alone, as in {where} {host}/{protocol}")
    if colon:
        raise ConfigError(f"{where} {quoted(text)} is no port of the host; it looks like 8080, udp:53 or 53/udp")
    return _port(host, f"{where} {quoted(text)}"), protocol


def _protocol(text: str, where: str) -> tuple[str, str]:
    """The protocol that *text* names in front or at its end, and the ports between."""
    front, colon, rest = text.partition(":")
    ports, slash, end = (rest if colon and front in PROTOCOLS else text).partition("/")
    named = [name for name, is_there in ((front, colon and front in PROTOCOLS), (end, slash)) if is_there]
    if len(named) > 1 or not {*named} <= {*PROTOCOLS}:
        raise ConfigError(f"{where} {quoted(text)}: the protocol is tcp or udp, named once, as in udp:5353:53 or 5353:53/udp")
    return (named[0] if named else PROTOCOLS[0]), ports


def parse_forwards(texts: Sequence[str], where: str = "--publish") -> tuple[Forward, ...]:
    """All of *texts*, each of which may hold several with commas between.

    Raises:
        ConfigError: one of them is none, two have the same port of the host, or there are too many.
    """
    return check_forwards([parse_forward(part, where) for text in texts for part in text.split(",")], where)


def check_forwards(forwards: Iterable[Forward], where: str) -> tuple[Forward, ...]:
    """*forwards*, each once.

    Raises:
        ConfigError: two have the same port of the host, or there are too many.
    """
    found: dict[tuple[int, str], Forward] = {}
    for forward in forwards:
        known = found.setdefault((forward.host_port, forward.protocol), forward)
        if known != forward:
            port = f"{forward.host_port}/{forward.protocol}"
            raise ConfigError(f"{where}: port {port} of the host is to lead to {known.guest_port} and to {forward.guest_port}")
    if len(found) > MOST_FORWARDS:
        raise ConfigError(f"{where}: {len(found)} ports of the host, at most {MOST_FORWARDS} lead to one guest")
    return tuple(found.values())


def parse_metadata_access(text: str, where: str = "--metadata") -> MetadataAccess:
    """Who may read a guest's metadata over HTTP.

    Raises:
        ConfigError: it is none of optional, required and off.
    """
    return _choice(MetadataAccess, text, where)


def parse_config_drive(text: str, where: str = "--config-drive") -> ConfigDrive:
    """Whether a guest has its metadata on a disk, and in which form.

    Raises:
        ConfigError: it is none of auto, openstack, nocloud and none.
    """
    return _choice(ConfigDrive, text, where)


def _choice(kind: type[Choice], text: str, where: str) -> Choice:
    known = [choice.value for choice in kind]
    if text not in known:
        near = nearest(text, known)
        raise ConfigError(f"{where} {quoted(text)} is none of {', '.join(known)}" + (f"; did you mean {near}?" if near else ""))
    return kind(text)
