"""How an instance names the volumes that it is to have, and how its guest finds them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

MOST_VOLUMES = 16  # of one instance
SERIAL_LENGTH = 20  # bytes of a serial number that virtio hands on


@dataclass(frozen=True)
class VolumeRef:
    """A volume of an instance.

    Args:
        name: as it was called when it was attached; for people.
        slot: which of the instance's places for volumes it has, from 0: the device keeps its name while others come and go.
    """

    uuid: UUID
    name: str
    slot: int

    @property
    def serial(self) -> str:
        """What the guest reads: /dev/disk/by-id/virtio-SERIAL."""
        return serial_of(self.uuid)


def serial_of(volume: UUID) -> str:
    """The disk's serial number: as much of the uuid as fits, since a name may be another volume's tomorrow."""
    return str(volume)[:SERIAL_LENGTH]
