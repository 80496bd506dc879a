"""What a guest says its addresses are: it may say anything, and may take as long as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from common.nics import IpAddress
from ecompute.guest_answers import MOST_SPARED_SECONDS, SPARED_SECONDS, SlowAgents, addresses_of
from ecompute.libvirt_networks import AGENT_SECONDS, guest_addresses
from tests.fakes.clock import FakeClock

MAC = "52:54:c0:a8:7a:32"
AGENT, NEIGHBOURS = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP
WELL = IpAddress("10.9.0.7", 24)


def answer(*said: object, mac: str = MAC, prefix: object = 24) -> dict[str, Any]:
    return {"eth0": {"hwaddr": mac, "addrs": [{"addr": one, "prefix": prefix, "type": 0} for one in said]}}


class Guest:
    """A libvirt domain, as far as it is asked for addresses."""

    def __init__(self, clock: FakeClock, agent: Callable[[], object], neighbours: Callable[[], object] = dict) -> None:
        self._clock, self._sources = clock, {AGENT: agent, NEIGHBOURS: neighbours}
        self.takes_seconds, self.id, self.has_timeout = 0.0, 7, True
        self.asked: list[int] = []
        self.waits: list[int] = []

    def UUIDString(self) -> str:
        return "11111111-1111-4111-8111-111111111111"

    def ID(self) -> int:
        return self.id

    def agentSetResponseTimeout(self, seconds: int, flags: int) -> int:
        if not self.has_timeout:
            raise refused(libvirt.VIR_ERR_NO_SUPPORT)
        self.waits.append(seconds)
        return flags

    def interfaceAddresses(self, source: int) -> object:
        self.asked.append(source)
        if source == AGENT:
            self._clock.now += self.takes_seconds
        return self._sources[source]()


def refused(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("no")
    error.err = (code, 0, "no", 2, "", "", "", 0, 0)
    return error


def raising(code: int) -> Callable[[], object]:
    def ask() -> object:
        raise refused(code)

    return ask


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize(
    "said",
    [
        "", "garbage", "10.9.0.7/24", "10.9.0.7 ", "fe80::1", "fd00::1%eth0", "fd00::1%\x1b[2J; drop table", "::ffff:10.9.0.7",
        "127.0.0.1", "::1", "169.254.169.254", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "1" * 100_000, None, 7.5,
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_host_is_left_out_and_the_others_stay(said: object) -> None:
    assert addresses_of(answer(said, "10.9.0.7")) == {MAC: (WELL,)}


@pytest.mark.parametrize("prefix", [0, -1, 33, 129, 1 << 70, "x", None])
def test_a_prefix_that_none_has_is_the_usual_one_or_none(prefix: object) -> None:
    assert addresses_of(answer("10.9.0.7", prefix=prefix))[MAC] in ((WELL,), ())


def test_an_address_has_the_spelling_that_we_give_it() -> None:
    assert addresses_of(answer("FD00:0::0:9", prefix=64)) == {MAC: (IpAddress("fd00::9", 64),)}


def test_a_guest_that_says_much_is_heard_a_little() -> None:
    many = answer(*(f"10.9.{number >> 8}.{number & 255}" for number in range(1, 5000)))
    assert len(addresses_of(many)[MAC]) == 8
    cards = {f"eth{number}": answer(f"10.9.0.{number}", mac=f"{MAC[:-2]}{number:02x}")["eth0"] for number in range(250)}
    assert len(addresses_of(cards)) == 64
    assert addresses_of(answer("10.9.0.7", mac="\x1b[2J" * 1000)) == {}


@pytest.mark.parametrize("garbage", [answer("garbage"), answer("fd00::1%x"), {}, {"lo": {}}, None])
def test_whom_the_host_has_seen_counts_where_the_guest_says_nothing_of_use(clock: FakeClock, garbage: object) -> None:
    guest = Guest(clock, lambda: garbage, lambda: answer("10.9.0.7", prefix=0))
    assert guest_addresses(guest, SlowAgents(clock)) == {MAC: (WELL,)}  # type: ignore[arg-type]


def test_an_agent_is_not_waited_for_for_ever_and_as_before_by_others(clock: FakeClock) -> None:
    guest = Guest(clock, lambda: answer("10.9.0.7"))
    assert guest_addresses(guest, SlowAgents(clock)) == {MAC: (WELL,)}  # type: ignore[arg-type]
    assert guest.waits == [AGENT_SECONDS, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK]
    guest.has_timeout = False
    assert guest_addresses(guest, SlowAgents(clock)) == {MAC: (WELL,)}  # type: ignore[arg-type]


def test_a_guest_that_hangs_is_spared_for_longer_each_time(clock: FakeClock) -> None:
    agents, guest = SlowAgents(clock), Guest(clock, raising(libvirt.VIR_ERR_AGENT_UNRESPONSIVE), lambda: answer("10.9.0.7"))
    guest.takes_seconds = AGENT_SECONDS

    def sources() -> list[int]:
        guest.asked.clear()
        assert guest_addresses(guest, agents) == {MAC: (WELL,)}  # type: ignore[arg-type]
        return list(guest.asked)

    pause = SPARED_SECONDS
    for _ in range(8):
        assert sources() == [AGENT, NEIGHBOURS]
        clock.now += pause - 1
        assert sources() == [NEIGHBOURS]
        clock.now += 1
        pause = min(2 * pause, MOST_SPARED_SECONDS)
    assert sources() == [AGENT, NEIGHBOURS]
    guest.id += 1
    assert sources() == [AGENT, NEIGHBOURS], "it was started anew"
    guest.takes_seconds, guest.id = 0.0, guest.id + 1
    assert sources() == sources() == [AGENT, NEIGHBOURS], "one without an agent says so at once"
