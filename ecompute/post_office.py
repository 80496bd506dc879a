"""The host's mailbox with everybody who answers letters in it, put together here and nowhere else. Called by the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.config import ComputeConfig
from common.disk_snapshots import KINDS as SNAPSHOT_KINDS
from common.findings import Letter
from common.keys import Keys
from common.store import Compare, Store
from ecompute.appliance import is_usable
from ecompute.guest_desk import GuestDesk
from ecompute.image_jobs import ImageJobs, image_jobs
from ecompute.leaving import Leaver
from ecompute.mail import Mailbox
from ecompute.snapshotter import Snapshotter
from ecompute.world import World

Answer = Callable[[Letter], str | None]


@dataclass(frozen=True)
class PostOffice:
    """What is to be run and woken; ``mailbox`` takes the letters in."""

    mailbox: Mailbox
    images: ImageJobs
    desk: GuestDesk

    @property
    def runs(self) -> dict[str, Callable[[threading.Event], None]]:
        """What wants a thread of its own, by its name."""
        return {"watch-mail": self.mailbox.watch, "mail": self.mailbox.run, "images": self.images.run}

    def wake(self) -> None:
        """Have all of it look whether it is to stop."""
        self.mailbox.wake()
        self.desk.wake()


def post_office(
    world: World, store: Store, keys: Keys, *, config: ComputeConfig, provider: UUID, host: str, fence: Callable[[], Compare],
    stop: threading.Event, leaver: Leaver, snapshotter: Snapshotter, others: tuple[Answer, ...],
) -> PostOffice:  # fmt: skip
    """The one of *host*.

    Args:
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        stop: set when the daemon is to end.
        others: more that answer letters, each None to kinds that it does not know.
    """
    images = image_jobs(
        world, store, keys, config=config, provider=provider, host=host,
        sealer=lambda: world.preparation.tools if is_usable() else None,
    )  # fmt: skip
    desk = GuestDesk(world.hypervisor, world.disks.console_log_path, stop)
    served = (leaver.answer, snapshotter.answer, images.answer, desk.answer, *others)
    mailbox = Mailbox(
        store, keys, provider, fence=fence, answered=leaver.answered, takes_long=SNAPSHOT_KINDS, hand_on=desk.hand_on,
        answer=lambda letter: next((text for text in (answer(letter) for answer in served) if text), None),
    )  # fmt: skip
    return PostOffice(mailbox, images, desk)
