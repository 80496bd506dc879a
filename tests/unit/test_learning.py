"""Learning addresses: asked a few times after a start and at each look, in nobody's way."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import HypervisorUnavailable
from common.model import Nic
from common.nics import AddressSource, IpAddress
from ecompute.bridges import HostBridges
from ecompute.domain_xml import domain_xml
from ecompute.learning import PAUSES_SECONDS, AddressLearner
from ecompute.network import AddressPools
from tests.fakes.clock import FakeClock
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.domains import a_context, a_spec
from tests.support.processes import wait_until

ONE = UUID("11111111-1111-4111-8111-111111111111")
TWO = UUID("22222222-2222-4222-8222-222222222222")
ON_BRIDGE = Nic("", bridge="br0")
SEEN = IpAddress("10.9.0.7", 24)


class Host:
    """A host with two guests that run: one has a card that somebody else serves, the other has not."""

    def __init__(self, directory: Path) -> None:
        self.hypervisor, self.clock, self.woken = FakeHypervisor(), FakeClock(), list[UUID]()
        self.networks = AddressPools(self.hypervisor, directory, bridges=HostBridges(None))
        self.learner = AddressLearner(self.hypervisor, self.networks, self.woken.append, clock=self.clock)
        for name, uuid, nics in (("one", ONE, [Nic(), ON_BRIDGE]), ("two", TWO, [Nic()])):
            addresses = self.networks.reserve(uuid, nics)
            self.hypervisor.define(domain_xml(a_spec(name, uuid=uuid), a_context(addresses=addresses)))
            self.hypervisor.start(uuid)
            self.learner.changed(uuid)

    def says(self, *addresses: IpAddress) -> None:
        self.hypervisor.addresses_said[ONE] = {self.card.mac: addresses}

    @property
    def card(self):  # type: ignore[no-untyped-def]
        return (self.networks.assigned(ONE) or ())[1]

    def asked(self) -> list[UUID]:
        self.learner.ask_due()
        asked = [uuid for name, uuid in self.hypervisor.calls if name == "guest_addresses"]
        self.hypervisor.calls.clear()
        return asked


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "network")


def test_a_guest_is_asked_a_few_times_after_its_start_and_then_no_more(host: Host) -> None:
    assert host.asked() == []
    for pause in PAUSES_SECONDS:
        host.clock.now += pause
        assert host.asked() == [ONE]
        assert host.asked() == []
    host.clock.now += 3600
    assert host.asked() == []


def test_what_it_has_is_noted_told_and_not_asked_for_again(host: Host, tmp_path: Path) -> None:
    host.says(SEEN)
    host.clock.now += PAUSES_SECONDS[0]
    assert host.asked() == [ONE]
    assert (host.card.address, host.card.source, host.woken) == ("10.9.0.7", AddressSource.LEARNED, [ONE])
    assert AddressPools(host.hypervisor, tmp_path / "network").assigned(ONE) == host.networks.assigned(ONE)
    host.clock.now += 3600
    assert host.asked() == []


def test_each_look_asks_once_and_only_whom_there_is_something_to_learn_from(host: Host) -> None:
    host.says(SEEN)
    host.learner.look(host.hypervisor.list())
    assert (host.asked(), host.woken) == ([ONE], [ONE])
    host.learner.look(host.hypervisor.list())
    assert (host.asked(), host.woken) == ([ONE], [ONE]), "the same again is no news"
    host.says(IpAddress("10.9.0.8", 24))
    host.learner.look(host.hypervisor.list())
    assert (host.asked(), host.card.address) == ([ONE], "10.9.0.8")
    host.hypervisor.destroy(ONE)
    host.learner.look(host.hypervisor.list())
    assert host.asked() == []


def test_libvirt_that_is_away_is_asked_again_at_the_next_look(host: Host) -> None:
    host.hypervisor.fail_next("guest_addresses", HypervisorUnavailable("away"))
    host.learner.look(host.hypervisor.list())
    assert host.asked() == [ONE]
    host.learner.look(host.hypervisor.list())
    assert host.asked() == [ONE]


def test_a_guest_cannot_take_the_address_of_another(host: Host) -> None:
    victim = (host.networks.assigned(TWO) or ())[0].address
    host.says(IpAddress(victim, 24))
    host.learner.look(host.hypervisor.list())
    assert (host.asked(), host.card.address, host.woken) == ([ONE], "", [])


def test_an_address_that_it_said_is_taken_from_it_when_another_gets_it(host: Host) -> None:
    host.says(IpAddress("10.0.0.9", 24), SEEN)
    host.learner.look(host.hypervisor.list())
    host.asked()
    host.networks.reserve(UUID(int=3), [Nic("lan", "br0", addresses=(IpAddress("10.0.0.9", 24),))])
    assert host.card.all_addresses == ("10.9.0.7",)


def test_one_that_is_gone_meanwhile_leaves_nothing(host: Host, tmp_path: Path) -> None:
    host.networks.release(ONE)
    assert not host.networks.learn(ONE, {host.hypervisor.cards(ONE)[1].mac: (SEEN,)})
    assert not (tmp_path / "network" / f"{ONE}.json").exists()


def test_its_thread_asks_when_it_is_time_and_ends_when_told(host: Host) -> None:
    stop = threading.Event()
    learner = AddressLearner(host.hypervisor, host.networks, host.woken.append)
    thread = threading.Thread(target=learner.run, args=(stop,), daemon=True)
    thread.start()
    host.says(SEEN)
    learner.look(host.hypervisor.list())
    wait_until(lambda: host.woken == [ONE], timeout_seconds=5, what="it was asked")
    stop.set()
    learner.wake()
    thread.join(5)
    assert not thread.is_alive()


def test_its_thread_ends_though_it_was_told_in_the_moment_in_which_it_looked(host: Host) -> None:
    class LateStop(threading.Event):
        """Somebody sets it and wakes the learner just after it was looked at."""

        def is_set(self) -> bool:
            before = super().is_set()
            if not before:
                late = threading.Thread(target=lambda: (self.set(), learner.wake()), daemon=True)
                late.start()
                late.join(0.2)  # who looks under the lock is not kept waiting by the one that wants it
            return before

    learner = AddressLearner(host.hypervisor, host.networks, host.woken.append)
    thread = threading.Thread(target=learner.run, args=(LateStop(),), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
