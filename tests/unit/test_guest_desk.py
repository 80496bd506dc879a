"""What a host answers about its guests: log, screen and commands; nobody waits for whoever takes long."""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import HypervisorUnavailable, Permanent, Transient
from common.findings import MOST_BYTES, Letter
from common.guest_letters import EXEC, EXEC_RESULT, LOG, MOST_DATA_BYTES, SCREENSHOT, VNC, GuestAnswer
from ecompute import guest_desk
from ecompute.domain_xml import domain_xml
from ecompute.guest_desk import GuestDesk
from ecompute.hypervisor import Picture
from ecompute.picture import as_png
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.domains import a_context, a_spec


class Desk:
    """A desk over a fake hypervisor with one running guest."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.hypervisor, self.stop = directory, FakeHypervisor(), threading.Event()
        self.desk = GuestDesk(self.hypervisor, lambda uuid: directory / str(uuid) / "console.log", self.stop)
        spec = a_spec("web")
        self.uuid = spec.uuid
        self.hypervisor.define(domain_xml(spec, a_context()))
        self.hypervisor.start(self.uuid)

    def ask(self, kind: str, uuid: UUID | None = None, **arguments: str | tuple[str, ...]) -> GuestAnswer:
        named = {"instance": str(uuid or self.uuid), **arguments}
        letter = Letter(kind, {name: (value,) if isinstance(value, str) else value for name, value in named.items()})
        text = self.desk.answer(letter)
        assert text is not None and len(text.encode()) <= MOST_BYTES
        return GuestAnswer.from_json(text)

    def write(self, data: bytes) -> None:
        path = self.directory / str(self.uuid) / "console.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.stop.set()
    made.desk.wake()


def test_other_kinds_are_none_of_ours(desk: Desk) -> None:
    assert desk.desk.answer(Letter("audit")) is None
    assert not desk.desk.hand_on(Letter("audit"), lambda: None)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"instance": ()}, {"instance": ("../../etc",)}, {"instance": (str(uuid4()),), "position": ("x",)},
        {"instance": (str(uuid4()),), "wait_seconds": ("3600",)}, {"instance": (str(uuid4()),), "wait_seconds": ("nan",)},
        {"instance": (str(uuid4()),), "tail": ("many",)},
    ],
)  # fmt: skip
def test_a_letter_that_makes_no_sense(desk: Desk, arguments: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError):
        desk.desk.answer(Letter(LOG, arguments))


# -- the log ---------------------------------------------------------------------------------------------------------------


def test_a_long_log_comes_in_pieces(desk: Desk) -> None:
    log = bytes(range(256)) * 1500
    desk.write(log)
    first = desk.ask(LOG)
    second = desk.ask(LOG, position=first.position)
    third = desk.ask(LOG, position=second.position)
    assert first.data + second.data + third.data == log and len(first.data) == MOST_DATA_BYTES
    assert (first.has_more, second.has_more, third.has_more) == (True, True, False)


def test_no_log_is_said(desk: Desk) -> None:
    answer = desk.ask(LOG)
    assert answer.reason == "NoLog" and not answer.is_transient and str(desk.uuid) in answer.problem


def test_the_tail_of_a_log(desk: Desk) -> None:
    desk.write(b"one\ntwo\nthree\n")
    answer = desk.ask(LOG, tail="2")
    assert answer.data == b"two\nthree\n"
    desk.write(b"four\n")
    assert desk.ask(LOG, position=answer.position).data == b"four\n"


def test_who_follows_is_answered_when_it_grows(desk: Desk) -> None:
    desk.write(b"one\n")
    position = desk.ask(LOG).position
    threading.Timer(0.2, desk.write, [b"two\n"]).start()
    begun = time.monotonic()
    assert desk.ask(LOG, position=position, wait_seconds="20").data == b"two\n"
    assert time.monotonic() - begun < 10


def test_who_follows_a_silent_log_is_answered_in_time_and_when_the_host_stops(desk: Desk) -> None:
    desk.write(b"one\n")
    position = desk.ask(LOG).position
    answer = desk.ask(LOG, position=position, wait_seconds="0.1")
    assert (answer.data, answer.position, answer.problem) == (b"", position, "")

    def stop() -> None:
        desk.stop.set()
        desk.desk.wake()

    threading.Timer(0.2, stop).start()
    begun = time.monotonic()
    desk.ask(LOG, position=position, wait_seconds="20")
    assert time.monotonic() - begun < 10


def test_too_many_followers_do_not_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_desk, "MOST_WAITING", 0)
    desk.desk._waiting = threading.BoundedSemaphore(1)
    desk.desk._waiting.acquire()
    desk.write(b"one\n")
    position = desk.ask(LOG).position
    begun = time.monotonic()
    assert desk.ask(LOG, position=position, wait_seconds="20").data == b""
    assert time.monotonic() - begun < 10


def test_letters_are_answered_beside_each_other_and_only_so_many(desk: Desk) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        begun.release()
        release.wait(20)

    for _ in range(guest_desk.MOST_AT_ONCE):
        assert desk.desk.hand_on(Letter(EXEC), slow)
    for _ in range(guest_desk.MOST_AT_ONCE):
        assert begun.acquire(timeout=10)
    with pytest.raises(Transient, match="answered already"):
        desk.desk.hand_on(Letter(EXEC), slow)
    release.set()
    done = threading.Event()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not done.is_set():
        try:
            desk.desk.hand_on(Letter(EXEC), done.set)
            done.wait(1)
        except Transient:
            continue
    assert done.is_set()


# -- the screen ------------------------------------------------------------------------------------------------------------


def test_a_picture_comes_as_png(desk: Desk) -> None:
    png = desk.ask(SCREENSHOT).data
    assert png.startswith(b"\x89PNG") and png[16:24] == b"\0\0\0\2\0\0\0\1"
    data = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    assert data == b"\0\xff\0\0\0\xff\0"
    assert as_png(Picture("image/png", png)) == png


@pytest.mark.parametrize("data", [b"", b"P6\n2 2\n255\n123", b"P6 0 0 255\n", b"P5\n1 1\n255\n1", b"P6\n99999 99999\n255\n"])
def test_a_picture_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Permanent):
        as_png(Picture("image/x-portable-pixmap", data))


def test_a_comment_in_a_picture_is_passed_over() -> None:
    assert as_png(Picture("", b"P6\n# CREATOR: x\n1 1\n255\nabc")).startswith(b"\x89PNG")


def test_a_picture_that_is_too_large_is_said(desk: Desk) -> None:
    desk.hypervisor.pictures[desk.uuid] = Picture("image/png", b"\x89PNG\r\n\x1a\n" + bytes(MOST_DATA_BYTES))
    answer = desk.ask(SCREENSHOT)
    assert answer.reason == "TooLarge" and "eschedule vnc" in answer.problem


def test_who_does_not_run_has_no_screen(desk: Desk) -> None:
    assert desk.ask(SCREENSHOT, uuid4()).reason == "NotHere"
    desk.hypervisor.destroy(desk.uuid)
    for kind in (SCREENSHOT, VNC, EXEC):
        assert desk.ask(kind, command=("true",)).reason == "NotRunning"


def test_where_the_screen_is_served(desk: Desk) -> None:
    missing = desk.ask(VNC)
    assert missing.reason == "NoScreen" and "libvirt.graphics" in missing.problem
    desk.hypervisor.screen_sockets[desk.uuid] = "/run/vnc.sock"
    assert desk.ask(VNC).path == "/run/vnc.sock"


def test_libvirt_that_is_away_is_transient(desk: Desk) -> None:
    desk.hypervisor.break_off(HypervisorUnavailable("libvirt is away"))
    answer = desk.ask(SCREENSHOT)
    assert answer.is_transient and answer.problem == "libvirt is away"


# -- a command -------------------------------------------------------------------------------------------------------------


class Agent:
    """An agent whose one process ends when it is asked for the third time."""

    def __init__(self, **ended: object) -> None:
        self.ended, self.asked, self.commands = ended, 0, list[object]()

    def __call__(self, text: str) -> str:
        command = json.loads(text)
        if command["execute"] == "guest-exec":
            self.commands.append(command["arguments"])
            return json.dumps({"return": {"pid": 7}})
        assert command == {"execute": "guest-exec-status", "arguments": {"pid": 7}}
        self.asked += 1
        return json.dumps({"return": {"exited": True, **self.ended} if self.asked >= 3 else {"exited": False}})


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_command_is_begun_and_its_end_is_told(desk: Desk) -> None:
    agent = desk.hypervisor.agents[desk.uuid] = Agent(exitcode=3, **{"out-data": text64(b"out"), "err-data": text64(b"err")})
    begun = desk.ask(EXEC, command=("ls", "-l"))
    assert begun.process == 7 and agent.commands == [{"path": "ls", "arg": ["-l"], "capture-output": True}]
    assert desk.ask(EXEC_RESULT, process="7").exit_code is None, "it is not waited for"
    ended = desk.ask(EXEC_RESULT, process="7", wait_seconds="10")
    assert (ended.exit_code, ended.data, ended.errors, ended.is_cut) == (3, b"out", b"err", False)


def test_a_command_that_a_signal_ended_and_one_that_says_much(desk: Desk) -> None:
    desk.hypervisor.agents[desk.uuid] = Agent(signal=9, **{"out-data": text64(bytes(10**6)), "err-data": text64(bytes(10**6))})
    ended = desk.ask(EXEC_RESULT, process="7", wait_seconds="10")
    assert ended.exit_code == 137 and ended.is_cut
    assert len(ended.data) + len(ended.errors) == MOST_DATA_BYTES and ended.data and ended.errors


@pytest.mark.parametrize(
    "said",
    ["", "[]", "{}", '{"return": 3}', '{"return": {"exited": true, "exitcode": "x"}}', '{"return": {"exited": true, "exitcode": -1}}',
     '{"return": {"exited": true, "exitcode": 0, "out-data": "%"}}', "[" * 100_000],
)  # fmt: skip
def test_an_agent_that_talks_nonsense(desk: Desk, said: str) -> None:
    desk.hypervisor.agents[desk.uuid] = lambda _: said
    answer = desk.ask(EXEC_RESULT, process="7", wait_seconds="1")
    assert answer.reason == "NoAgent" and "makes no sense" in answer.problem


def test_no_agent_is_said(desk: Desk) -> None:
    answer = desk.ask(EXEC, command=("ls",))
    assert answer.reason == "NoAgent" and not answer.is_transient
