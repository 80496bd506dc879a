"""The mailbox of a host: what is answered, under which lease and fence, and what is ignored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest

from common.errors import StoreUnavailable, Transient
from common.findings import Letter
from common.keys import Keys
from common.store import Compare, Transaction
from ecompute.mail import Mailbox
from tests.fakes.store import FakeStore
from tests.support.processes import wait_until

KEYS, PROVIDER = Keys(), uuid4()


class Office:
    """A mailbox at work."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.fenced_by = self.store.create(KEYS.host(PROVIDER), "{}")
        self.asked: list[Letter] = []
        self.handed_on: list[Callable[[], None]] = []
        self.failure: Exception | None = None
        self.stop = threading.Event()
        self.may_answer_long = threading.Event()
        box = self.box = Mailbox(
            self.store, KEYS, PROVIDER, fence=self.fence, answer=self.answer, hand_on=self.hand_on, takes_long=("long",)
        )  # fmt: skip
        self.threads = [threading.Thread(target=run, args=(self.stop,), daemon=True) for run in (box.watch, box.run)]
        for thread in self.threads:
            thread.start()

    def hand_on(self, letter: Letter, finish: Callable[[], None]) -> bool:
        if letter.kind == "refused":
            raise Transient("there are too many")
        if letter.kind == "slow":
            self.handed_on.append(finish)
        return letter.kind == "slow"

    def fence(self) -> Compare:
        return Compare.created_at(KEYS.host(PROVIDER), self.fenced_by)

    def answer(self, letter: Letter) -> str | None:
        if letter.kind == "long":
            assert self.may_answer_long.wait(20)
        self.asked.append(letter)
        if self.failure:
            raise self.failure
        return None if letter.kind == "unknown" else f"answer to {letter.kind}"

    def post(self, text: str, *, leased: bool = True, key: str | None = None) -> tuple[UUID, int]:
        letter = uuid4()
        lease_id = self.store.grant_lease(60).id if leased else 0
        self.store.commit(Transaction(puts={key or KEYS.mail(PROVIDER, letter): text}, lease_id=lease_id))
        return letter, lease_id

    def reply(self, letter: UUID) -> str | None:
        item = self.store.get(KEYS.mail_reply(letter))
        return item.value if item else None

    def is_answered(self) -> bool:
        """Whether a letter that comes behind all others gets its answer: nothing is left to be done then."""
        letter, _ = self.post(Letter("audit").to_json())
        return bool(wait_until(lambda: self.reply(letter), timeout_seconds=10, what="the last letter is answered"))


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.stop.set()
    made.box.wake()
    for thread in made.threads:
        thread.join(5)


def test_a_letter_is_answered_under_its_own_lease(office: Office) -> None:
    letter, lease_id = office.post(Letter("audit", {"instances": ()}).to_json())
    wait_until(lambda: office.reply(letter) == "answer to audit", timeout_seconds=10, what="it is answered")
    item = office.store.get(KEYS.mail_reply(letter))
    assert item is not None and item.lease_id == lease_id
    office.store.revoke_lease(lease_id)
    assert office.reply(letter) is None


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("no json \x1b[31m", {}),
        ("{}", {}),
        ('{"schema":1,"kind":7}', {}),
        ('{"schema":99,"kind":"audit"}', {}),
        ('{"schema":1,"kind":"unknown"}', {}),
        ('{"schema":1,"kind":"audit","arguments":{"a":["' + "x" * (256 << 10) + '"]}}', {}),
        ('{"schema":1,"kind":"audit"}', {"leased": False}),
        ('{"schema":1,"kind":"audit"}', {"key": KEYS.mails(PROVIDER) + "no-uuid"}),
    ],
)
def test_a_letter_that_makes_no_sense_is_ignored_with_one_line(
    office: Office, caplog: pytest.LogCaptureFixture, text: str, options: dict[str, object]
) -> None:
    with caplog.at_level(logging.WARNING):
        letter, _ = office.post(text, **options)  # type: ignore[arg-type]
        assert office.is_answered()
    assert office.reply(letter) is None
    lines = [record for record in caplog.records if "letter" in record.getMessage()]
    assert len(lines) == 1, caplog.text
    assert "\x1b" not in lines[0].getMessage() and len(lines[0].getMessage()) < 1000


def test_arguments_that_make_no_sense_and_services_that_are_away_do_not_end_the_service(office: Office) -> None:
    for failure in (ValueError("no uuid"), StoreUnavailable("etcd is away"), RuntimeError("a bug")):
        office.failure = failure
        letter, _ = office.post(Letter("audit").to_json())
        wait_until(lambda: len(office.asked) > 0, timeout_seconds=10, what="it was read")
        office.asked.clear()
        assert office.reply(letter) is None
    office.failure = None
    assert office.is_answered()


def test_a_host_that_lost_its_key_answers_nothing(office: Office) -> None:
    item = office.store.get(KEYS.host(PROVIDER))
    assert item is not None
    office.store.delete(item.key, seen=item.mod_revision)
    office.store.create(item.key, "another incarnation")
    letter, _ = office.post(Letter("audit").to_json())
    wait_until(lambda: office.asked, timeout_seconds=10, what="it was read")
    office.fenced_by = 0
    assert office.reply(letter) is None


def test_a_letter_that_has_its_answer_is_not_answered_again(office: Office) -> None:
    letter = uuid4()
    lease_id = office.store.grant_lease(60).id
    office.store.commit(Transaction(puts={KEYS.mail_reply(letter): "from before"}, lease_id=lease_id))
    office.store.commit(Transaction(puts={KEYS.mail(PROVIDER, letter): Letter("audit").to_json()}, lease_id=lease_id))
    assert office.is_answered()
    assert office.reply(letter) == "from before" and len(office.asked) == 1


def test_a_letter_that_takes_long_holds_up_no_other(office: Office) -> None:
    slow = [office.post(Letter("long").to_json())[0] for _ in range(3)]
    assert office.is_answered()
    assert [office.reply(letter) for letter in slow] == [None] * 3
    office.may_answer_long.set()
    for letter in slow:
        wait_until(lambda letter=letter: office.reply(letter), timeout_seconds=10, what="it is answered")  # type: ignore[misc]


def test_a_slow_letter_holds_nobody_up_and_is_answered_by_another_thread(office: Office) -> None:
    letter, _ = office.post(Letter("slow").to_json())
    assert office.is_answered() and office.reply(letter) is None
    (finish,) = office.handed_on
    finish()
    assert office.reply(letter) == "answer to slow"
    finish()  # a second answer is none


def test_what_fails_in_another_thread_is_said_and_ends_there(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    office.post(Letter("slow").to_json())
    assert office.is_answered()
    office.failure = RuntimeError("broken")
    office.handed_on[0]()
    assert "this is a bug" in caplog.text
    office.failure = None
    refused, _ = office.post(Letter("refused").to_json())
    assert office.is_answered() and office.reply(refused) is None and "too many" in caplog.text
