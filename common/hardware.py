"""What the machine of a guest has for a disk bus and network cards: what its image has drivers for. Pure.

The names are those of Glance's properties ``hw_disk_bus`` and ``hw_vif_model``, the values libvirt's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DiskBus(enum.StrEnum):
    """How a guest sees its disks."""

    VIRTIO = "virtio"
    SATA = "sata"


class CardModel(enum.StrEnum):
    """What a guest takes its network cards for."""

    VIRTIO = "virtio"
    E1000 = "e1000"


@dataclass(frozen=True)
class Hardware:
    """What differs from machine to machine; virtio, which is the fastest, unless an image has no drivers for it."""

    disk_bus: DiskBus = DiskBus.VIRTIO
    card_model: CardModel = CardModel.VIRTIO


USUAL = Hardware()
