"""What a host notes about its ports is understood by who lists them."""

from __future__ import annotations

from uuid import UUID

from common.model import Address, Forward, ImageRef, InstanceSpec
from common.port_notes import PortTrouble, troubles
from ecompute.firewall import judged, unmet, wished
from eschedule.forwarding import failure

ADDRESS = Address("default", "52:54:00:00:00:01", "192.168.122.50")
SPEC = InstanceSpec(UUID(int=1), "web", ImageRef("/x"), {"VCPU": 1}, forwards=(Forward(80, 8080), Forward(53, 53, "udp")))


def test_ports_that_are_taken() -> None:
    wish = wished(SPEC, (ADDRESS,), ["vnet0"])
    _, notes = judged(wish, others={("tcp", 80): "db"}, listening=[("udp", 53)])
    assert {port: trouble for port, (trouble, _) in troubles(notes).items()} == {
        (80, "tcp"): PortTrouble.TAKEN,
        (53, "udp"): PortTrouble.TAKEN,
    }
    assert notes[0] == "port 80/tcp of this host is taken by instance db; choose another"
    assert failure("web", SPEC.forwards[:1], notes).startswith(
        "the change of web is recorded, but not in force: port 80/tcp (taken); it is tried on; take it back: "
        "eschedule port-forward web --rm 80/tcp"
    )
    assert failure("web", [Forward(81, 80)], notes) == ""


def test_ports_that_lead_nowhere() -> None:
    notes = unmet(SPEC, ())
    assert notes == ("port 80/tcp, 53/udp of the host leads nowhere yet: no address of the guest is known",)
    assert troubles(notes) == dict.fromkeys([(80, "tcp"), (53, "udp")], (PortTrouble.NOWHERE, notes[0]))
    assert "port 80/tcp (leads nowhere yet), 53/udp (leads nowhere yet)" in failure("web", SPEC.forwards, notes)


def test_a_port_that_the_guests_own_rules_shut_does_lead_there() -> None:
    notes = unmet(
        InstanceSpec(UUID(int=1), "web", ImageRef("/x"), {"VCPU": 1}, forwards=(Forward(80, 80),), allow=()), (ADDRESS,)
    )
    assert troubles(notes) == {(80, "tcp"): (PortTrouble.SHUT, notes[0])}
    assert failure("web", [Forward(80, 80)], notes) == ""


def test_other_notes_speak_of_no_port() -> None:
    assert troubles(["rules cannot be enforced: no nft", "port of call", "port 99999999/tcp is nice", ""]) == {}
