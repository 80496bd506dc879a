"""What ``top`` shows of two answers, and how a host makes them."""

from __future__ import annotations

from uuid import UUID

import pytest

from common.errors import HypervisorUnavailable
from common.findings import MOST_BYTES, Letter
from common.host_letters import MOST_GUESTS, PING, USAGE, GuestUsage, HostUsage, Pong
from ecompute.usage_desk import FRESH_SECONDS, UsageDesk
from eschedule.usage import Use, in_order, usage_json, usage_table, uses

WEB, DB, HOST = UUID(int=1), UUID(int=2), UUID(int=3)
NAMES, HOSTS = {WEB: "web", DB: "db"}, {HOST: "node1"}
BUSY = GuestUsage(WEB, 2, 5_000_000_000, 1 << 20, 2 << 20, 1000, 0, 0, 4096)


def test_rates_are_differences_over_the_hosts_own_time() -> None:
    before = HostUsage(1_000_000_000, (BUSY, GuestUsage(DB, 1, 7)))
    now = HostUsage(
        3_000_000_000, (GuestUsage(WEB, 2, 8_000_000_000, 1 << 20, 2 << 20, 3000, 0, 0, 4096), GuestUsage(DB, 1, 3))
    )
    web, db = uses(HOST, before, now)
    assert (web.cpu_percent, web.memory_bytes, web.disk_read, web.net_sent) == (150.0, 1 << 30, 1000.0, 0.0)
    assert db.cpu_percent is None, "it was started anew in between"
    assert [one.cpu_percent for one in uses(HOST, None, now)] == [None, None]
    assert [one.cpu_percent for one in uses(HOST, now, now)] == [None, None], "no time has passed"


def test_order_table_and_json() -> None:
    rows = [Use(DB, HOST, disk_read=5e6), Use(WEB, HOST, 2, 150.0, 1 << 30, 2 << 30, 10.0, 0.0, 2048.0, None)]
    assert [use.uuid for use in in_order(rows, "cpu", NAMES)] == [WEB, DB]
    assert [use.uuid for use in in_order(rows, "disk", NAMES)] == [DB, WEB]
    lines = usage_table(in_order(rows, "cpu", NAMES), NAMES, HOSTS).splitlines()
    assert lines[1].split() == ["web", "node1", "150.0", "2", "1.0G/2.0G", "10B", "0B", "2.0K", "-"]
    assert lines[2].split() == ["db", "node1", "-", "-", "-", "4.8M", "-", "-", "-"]
    assert usage_json(rows[1], NAMES, HOSTS)["cpu_percent"] == 150.0


class Measured:
    """The part of a hypervisor that is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.found: tuple[GuestUsage, ...] = (BUSY, GuestUsage(DB))
        self.problem: Exception | None = None

    def usage(self) -> tuple[GuestUsage, ...]:
        self.asked += 1
        if self.problem:
            raise self.problem
        return self.found


def test_a_host_measures_when_it_is_asked_and_once_for_all_who_ask_together() -> None:
    measured, now = Measured(), [10.0]
    desk = UsageDesk(measured, lambda uuid: uuid == WEB, lambda: now[0])  # type: ignore[arg-type]
    assert measured.asked == 0
    answers = [desk.answer(Letter(USAGE)) for _ in range(3)]
    assert measured.asked == 1 and len(set(answers)) == 1
    told = HostUsage.from_json(answers[0] or "")
    assert told.guests == (BUSY,) and told.at_ns == 10_000_000_000, "another one's guest is nobody's business"
    now[0] += 2 * FRESH_SECONDS
    measured.problem = HypervisorUnavailable("libvirt is away")
    assert HostUsage.from_json(desk.answer(Letter(USAGE)) or "").problem == "libvirt is away"
    assert Pong.from_json(desk.answer(Letter(PING)) or "") == Pong()
    assert desk.answer(Letter("lunch")) is None


def test_many_guests_fit_into_a_letter() -> None:
    measured = Measured()
    most = 10**15
    measured.found = tuple(
        GuestUsage(UUID(int=n), 256, most, most, most, most, most, most, most) for n in range(MOST_GUESTS + 1)
    )
    text = UsageDesk(measured, lambda _: True).answer(Letter(USAGE)) or ""  # type: ignore[arg-type]
    told = HostUsage.from_json(text)
    assert told.is_cut and len(told.guests) == MOST_GUESTS and len(text) < MOST_BYTES


@pytest.mark.parametrize("count", [0, 2])
def test_what_libvirt_tells_is_added_up_over_devices(count: int) -> None:
    from ecompute import libvirt_usage

    stats = {"cpu.time": 5, "vcpu.current": 2, "balloon.rss": 7, "balloon.maximum": 9, "net.count": count, "block.count": count}
    stats |= {f"net.{n}.rx.bytes": 10 for n in range(count)} | {f"block.{n}.wr.bytes": 3 for n in range(count)}
    found = libvirt_usage.usage_in(WEB, stats)
    assert (found.cpu_ns, found.vcpus, found.memory_kib, found.memory_most_kib) == (5, 2, 7, 9)
    assert (found.net_received_bytes, found.disk_written_bytes, found.disk_read_bytes) == (10 * count, 3 * count, 0)
    assert libvirt_usage.usage_in(WEB, {}).net_sent_bytes is None
