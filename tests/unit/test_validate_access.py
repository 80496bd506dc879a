"""Who may reach a guest: rules, ports, metadata access and config drives as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common.errors import ConfigError
from common.model import ConfigDrive, Forward, MetadataAccess
from common.validate_access import (
    AllowRule,
    check_forwards,
    parse_allow,
    parse_allow_rule,
    parse_config_drive,
    parse_forward,
    parse_forwards,
    parse_host_port,
    parse_metadata_access,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("tcp:22", AllowRule("tcp", 22, 22)),
        ("udp:8000-8100", AllowRule("udp", 8000, 8100)),
        ("tcp:1-65535@10.0.0.0/8", AllowRule("tcp", 1, 65535, "10.0.0.0/8")),
        ("tcp:22@fd00:0::/8", AllowRule("tcp", 22, 22, "fd00::/8")),
        ("icmp", AllowRule("icmp")),
        ("icmp@192.0.2.7", AllowRule("icmp", source="192.0.2.7/32")),
        ("all@10.0.0.0/8", AllowRule("all", source="10.0.0.0/8")),
    ],
)
def test_rules(text: str, rule: AllowRule) -> None:
    assert parse_allow_rule(text) == rule
    assert parse_allow_rule(str(rule)) == rule, "what is kept in a spec reads as the same"


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["tcp:22,icmp"], ("tcp:22", "icmp")),
        (["tcp:22", "icmp", "tcp:22-22, icmp"], ("tcp:22", "icmp")),
        (["tcp:22@10.0.0.0/255.0.0.0"], ("tcp:22@10.0.0.0/8",)),
        (["none"], ()),
    ],
)
def test_lists_of_rules(texts: list[str], kept: tuple[str, ...]) -> None:
    assert parse_allow(texts) == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("22", "write tcp:22 or udp:22"),
        ("ssh", "write tcp:22"),
        ("ping", "write icmp"),
        ("TCP:22", "it is tcp:PORT"),
        ("sctp:22", "it is tcp:PORT"),
        ("tcp", "names no port; write tcp:22"),
        ("udp:*", "udp:1-65535 for all"),
        ("tcp:0", '"0" is no port'),
        ("tcp:65536", '"65536" is no port'),
        ("tcp:22-", '"" is no port'),
        ("tcp:90-80", "run backwards; write 80-90"),
        ("icmp:8", "icmp has no ports"),
        ("tcp:22@", '"" behind the @ is no network'),
        ("tcp:22@fe80::1%eth0", "has a scope (%)"),
        ("tcp:22@2001:db8::1%} accept } } flush ruleset #", "has a scope (%)"),
        ("tcp:22@example.org", "is no network; it looks like 10.0.0.0/8"),
        ("tcp:22@10.0.0.7/8", "write 10.0.0.0/8, or 10.0.0.7 for that one"),
        ("tcp:22,,icmp", "an empty rule"),
        ("", "an empty rule"),
        ("none,tcp:22", "none stands alone"),
        ("tcp:22\x1b[2J", "is no port"),
        (",".join(f"tcp:{port}" for port in range(1, 66)), "has 65 rules, at most 64"),
    ],
)
def test_what_is_no_rule_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_allow([text])
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", Forward(8080, 80)),
        ("tcp:8080:80", Forward(8080, 80)),
        ("udp:53:5353", Forward(53, 5353, "udp")),
        ("53:5353/udp", Forward(53, 5353, "udp")),
        ("8080:80/tcp", Forward(8080, 80)),
    ],
)
def test_forwards(text: str, forward: Forward) -> None:
    assert parse_forward(text) == forward


@pytest.mark.parametrize(("text", "port"), [("8080", (8080, "tcp")), ("53/udp", (53, "udp")), ("udp:53", (53, "udp"))])
def test_a_port_of_the_host_alone(text: str, port: tuple[int, str]) -> None:
    assert parse_host_port(text) == port


def test_several_forwards() -> None:
    kept = (Forward(80, 8080), Forward(80, 53, "udp"))
    assert parse_forwards(["80:8080,80:53/udp", "80:8080"]) == kept


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_forward, "8080", "is no HOSTPORT:GUESTPORT"),
        (parse_forward, "", "is no HOSTPORT:GUESTPORT"),
        (parse_forward, "0:80", '"0" is no port'),
        (parse_forward, "80:http", '"http" is no port'),
        (parse_forward, "127.0.0.1:8080:80", "no address can be given"),
        (parse_forward, "[::1]:8080:80", "no address can be given"),
        (parse_forward, "sctp:80:80", "before it only tcp: or udp: may stand, as in udp:5353:53"),
        (parse_host_port, "sctp:80", "it looks like 8080, udp:53 or 53/udp"),
        (parse_forward, "80:80/sctp", "the protocol is tcp or udp, named once"),
        (parse_forward, "tcp:80:80/udp", "the protocol is tcp or udp, named once"),
        (parse_forward, "80:80/", "the protocol is tcp or udp, named once"),
        (parse_host_port, "web", '"web" is no port'),
        (parse_host_port, "8091:8000", '--rm "8091:8000" names two ports; give the host\'s alone, as in --rm 8091/tcp'),
        (parse_host_port, "udp:53:53", "as in --rm 53/udp"),
        (parse_metadata_access, "require", "did you mean required?"),
        (parse_config_drive, "yes", "none of auto, openstack, nocloud, none"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(parse: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_of_the_host_leads_to_one_place() -> None:
    with pytest.raises(ConfigError, match="port 80/tcp of the host is to lead to 8080 and to 8081"):
        parse_forwards(["80:8080", "80:8081"])


def test_only_so_many_ports_lead_to_one_guest() -> None:
    with pytest.raises(ConfigError, match="33 ports of the host, at most 32"):
        check_forwards((Forward(port, port) for port in range(1, 34)), "--publish")


def test_choices() -> None:
    assert parse_metadata_access("off") is MetadataAccess.OFF
    assert parse_config_drive("nocloud") is ConfigDrive.NOCLOUD
