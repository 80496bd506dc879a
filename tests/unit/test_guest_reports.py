"""What guests say: from md_server's knock to the look at the instance, into its status, and away with it."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.model import Desired, InstanceSpec, Phase, Ready
from common.reports import EVERY_SECONDS, SOCKET_NAME, GuestReport, ReportStore, report_store
from ecompute.guest_reports import ReportBell, remove_strays
from md_server.reporting import Reporter
from tests.fakes.clock import FakeClock
from tests.support.loop import KEYS, Loop
from tests.support.processes import wait_until
from tests.unit.test_resync import Look

GUEST, OTHER = UUID(int=1), UUID(int=2)
AT, LATER = "2026-11-21T12:00:00.000Z", "2026-11-21T12:05:00.000Z"
FINGERPRINT = f"SHA256:{'k' * 43} (ED25519)"


class Host:
    """The two ends of the back channel, in one run directory."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(parents=True)
        self.store, self.clock = ReportStore(folder / "reports"), FakeClock()
        self.looks: list[tuple[UUID, float]] = []
        self.boot = 1
        self.bell = ReportBell(
            self.run_dir, is_known=lambda uuid: uuid == GUEST, add=lambda uuid: self.looks.append((uuid, 0.0)),
            add_after=lambda uuid, seconds: self.looks.append((uuid, seconds)), boot_of=lambda _: self.boot, clock=self.clock,
        )  # fmt: skip

    def report(self, uuid: UUID = GUEST, report: GuestReport | None = None) -> None:
        """As md_server does for a guest."""
        reporter = Reporter(self.store, self.run_dir)
        reporter(uuid, report or GuestReport(AT))
        reporter.close()

    def send(self, datagram: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(datagram, str(self.run_dir / SOCKET_NAME))

    @contextmanager
    def listening(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self.bell.run, args=(stop,), daemon=True)
        thread.start()
        try:
            self.wait_for_socket()
            yield
        finally:
            stop.set()
            self.bell.wake()
            thread.join(5)
            assert not thread.is_alive()

    def answers(self) -> bool:
        try:
            self.send(str(GUEST).encode())
        except ConnectionRefusedError:
            return False
        return True

    def wait_for_socket(self) -> None:
        wait_until((self.run_dir / SOCKET_NAME).is_socket, timeout_seconds=5, what="the socket")

    def wait_for_looks(self, count: int) -> list[tuple[UUID, float]]:
        wait_until(lambda: len(self.looks) >= count, timeout_seconds=5, what=f"{count} looks", evidence=lambda: str(self.looks))
        return self.looks


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class TestBell:
    def test_a_report_has_its_instance_looked_at(self, host: Host) -> None:
        with host.listening():
            host.report()
            assert host.wait_for_looks(1) == [(GUEST, 0.0)]
        assert host.store.read(GUEST) == GuestReport(AT)
        assert not (host.run_dir / SOCKET_NAME).exists()

    def test_the_path_may_be_longer_than_an_address(self, tmp_path: Path) -> None:
        host = Host(tmp_path / ("d" * 120))
        with host.listening():
            host.report()
            host.wait_for_looks(1)

    def test_a_socket_that_a_crash_left_is_replaced(self, host: Host) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as former:
            former.bind(str(host.run_dir / SOCKET_NAME))
        host.report()  # nobody listens: the file is there all the same
        with host.listening():
            wait_until(host.answers, timeout_seconds=5, what="the socket is another one")
            host.wait_for_looks(1)

    def test_it_is_for_root_and_the_group_that_the_folder_hands_on(self, host: Host) -> None:
        group = 4242 if os.getuid() == 0 else os.getgid()
        os.chown(host.run_dir, -1, group)
        host.run_dir.chmod(0o2755)
        bell = host.run_dir / SOCKET_NAME
        with host.listening():
            wait_until(lambda: bell.stat().st_mode & 0o777 == 0o620, timeout_seconds=5, what="the mode")
            assert bell.stat().st_gid == group

    def test_what_names_no_instance_of_ours_is_nothing(self, host: Host) -> None:
        with host.listening():
            for datagram in (b"", b"x", b"\xff" * 36, str(GUEST).encode() + b"x", str(OTHER).encode(), b"y" * 5000):
                host.send(datagram)
            host.send(str(GUEST).encode())
            assert host.wait_for_looks(1) == [(GUEST, 0.0)]

    def talk(self, host: Host, seconds: int) -> list[float]:
        """Have the guest report ten times a second for so long; when it is looked at."""
        began = len(host.looks)
        due = []
        for _ in range(10 * seconds):
            host.clock.now = round(host.clock.now + 0.1, 3)
            before = len(host.looks)
            host.bell.rung(str(GUEST).encode())
            due += [round(host.clock.now + seconds, 1) for _, seconds in host.looks[before:]]
        assert len(host.looks) - began == len(due)
        return due

    def test_a_guest_that_talks_without_end_is_looked_at_less_and_less_often(self, host: Host) -> None:
        due = self.talk(host, 600)
        pauses = [round(later - earlier) for earlier, later in itertools.pairwise(due)]
        assert pauses[:7] == [2, 4, 8, 16, 32, 60, 60]
        assert set(pauses[7:]) == {60}
        host.clock.now = due[-1] + 60
        assert len(self.talk(host, 2)) == 2, "after a rest at once, and two seconds later again"

    def test_the_first_report_of_a_boot_is_looked_at_at_once(self, host: Host) -> None:
        self.talk(host, 100)
        host.boot += 1
        host.bell.rung(str(GUEST).encode())
        assert host.looks[-1] == (GUEST, 0.0)
        self.talk(host, 100)
        host.bell.started(GUEST)
        host.bell.rung(str(GUEST).encode())
        assert host.looks[-1] == (GUEST, 0.0)

    def test_many_that_report_are_not_remembered_for_ever(self, tmp_path: Path) -> None:
        clock, looks = FakeClock(), list[UUID]()
        bell = ReportBell(
            tmp_path, is_known=lambda _: True, add=looks.append, add_after=lambda uuid, _: looks.append(uuid), clock=clock
        )
        for number in range(5000):
            clock.now += 0.01
            bell.rung(str(UUID(int=number)).encode())
        assert len(looks) == 5000
        assert len(bell._looks) < 2000

    def test_a_look_is_due_after_the_last_report(self, host: Host) -> None:
        with host.listening():
            host.report()
            host.wait_for_looks(1)
            host.clock.now += 0.5
            host.report()
            assert host.wait_for_looks(2) == [(GUEST, 0.0), (GUEST, EVERY_SECONDS - 0.5)]

    def test_where_no_socket_can_be_made_it_is_said_and_it_stops_in_time(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        (host.run_dir / SOCKET_NAME).mkdir()
        stop = threading.Event()
        thread = threading.Thread(target=host.bell.run, args=(stop,), daemon=True)
        thread.start()
        wait_until(lambda: "seen within a minute only" in caplog.text, timeout_seconds=5, what="a warning")
        stop.set()
        host.bell.wake()
        thread.join(5)
        assert not thread.is_alive()


class TestReporter:
    def test_it_never_waits_for_who_does_not_listen(self, host: Host) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
            deaf.bind(str(host.run_dir / SOCKET_NAME))
            for number in range(600):  # more than any queue of a socket holds
                host.report(GUEST, GuestReport(AT, str(number)))
        assert host.store.read(GUEST) == GuestReport(AT, "599")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


@pytest.fixture
def spec(loop: Loop) -> InstanceSpec:
    """A guest that runs."""
    made = loop.request()
    loop.settle(made)
    return made


class TestStatus:
    def test_what_a_guest_says_is_in_its_status(self, loop: Loop, spec: InstanceSpec) -> None:
        assert loop.status(spec).ready is None
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up", (FINGERPRINT,)))
        loop.settle(spec)
        assert loop.status(spec).ready == Ready(AT, "up", (FINGERPRINT,), boot_request=1)
        assert loop.status(spec).phase is Phase.RUNNING

    def test_a_status_is_written_only_for_something_new(self, loop: Loop, spec: InstanceSpec) -> None:
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up"))
        loop.settle(spec)
        revision = loop.store.get(KEYS.status(loop.provider, spec.uuid))
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up"))
        loop.settle(spec)
        assert loop.store.get(KEYS.status(loop.provider, spec.uuid)) == revision

    def test_a_resync_finds_what_no_bell_told(self, loop: Loop, spec: InstanceSpec) -> None:
        look = Look(loop)
        assert look() == []
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up"))
        assert look() == [spec.uuid]
        loop.settle(spec)
        assert look() == []

    def test_a_restart_keeps_it_and_finds_what_came_meanwhile(self, loop: Loop, spec: InstanceSpec) -> None:
        loop.world.reports.write(spec.uuid, GuestReport(AT, "first"))
        loop.settle(spec)
        loop.restart()
        loop.settle(spec)
        assert loop.status(spec).ready == Ready(AT, "first", boot_request=1)
        loop.world.reports.write(spec.uuid, GuestReport(LATER, "second"))
        loop.restart()
        loop.settle(spec)
        assert loop.status(spec).ready == Ready(LATER, "second", boot_request=1)

    def test_what_it_said_before_a_start_counts_for_the_boot_before(self, loop: Loop, spec: InstanceSpec) -> None:
        loop.hypervisor.guest_powers_off(spec.uuid)
        loop.settle(spec)
        loop.world.reports.write(spec.uuid, GuestReport(AT, "its last words"))  # nobody has looked since
        loop.change(spec, boot_request=2)
        loop.settle(spec)
        assert loop.status(spec).booted == 2
        assert loop.status(spec).ready == Ready(AT, "its last words", boot_request=1)
        loop.world.reports.write(spec.uuid, GuestReport(LATER, "up again"))
        loop.settle(spec)
        assert loop.status(spec).ready == Ready(LATER, "up again", boot_request=2)

    def test_one_that_cannot_be_read_harms_nobody(
        self, loop: Loop, spec: InstanceSpec, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up"))
        loop.settle(spec)
        (loop.directory / "metadata" / "reports" / f"{spec.uuid}.json").write_text("{")
        with caplog.at_level(logging.WARNING):
            loop.settle(spec)
        assert "not shown" in caplog.text
        assert loop.status(spec).phase is Phase.RUNNING
        assert loop.status(spec).ready == Ready(AT, "up", boot_request=1)  # what was known

    def test_it_goes_with_the_instance(self, loop: Loop, spec: InstanceSpec) -> None:
        loop.world.reports.write(spec.uuid, GuestReport(AT, "up"))
        loop.change(spec, desired=Desired.DELETED)
        loop.settle(spec)
        assert loop.world.reports.list() == ()
        assert loop.store.get(KEYS.status(loop.provider, spec.uuid)) is None

    def test_a_guest_that_is_built_has_not_said_anything_yet(self, loop: Loop) -> None:
        spec = loop.request()
        loop.world.reports.write(spec.uuid, GuestReport(AT, "of one with the same uuid"))
        loop.settle(spec)
        assert loop.status(spec).ready is None


def test_reports_of_nobody_are_removed(tmp_path: Path) -> None:
    store, wanted, gone = report_store(tmp_path), uuid4(), uuid4()
    for uuid in (wanted, gone):
        store.write(uuid, GuestReport(AT))
    remove_strays(store, lambda uuid: uuid == wanted)
    assert store.list() == (wanted,)


def test_a_directory_that_cannot_be_listed_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metadata").write_text("a file where the directory should be")
    remove_strays(report_store(tmp_path), lambda _: False)
    assert "are left" in caplog.text
