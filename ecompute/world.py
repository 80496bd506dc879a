"""What the loop looks at and acts on, in one value: facts are gathered from it, steps are done to it. Holds no logic."""

from __future__ import annotations

from dataclasses import dataclass

from common.metadata import MetadataStore
from ecompute.blueprint import Blueprint
from ecompute.disks import Disks
from ecompute.hypervisor import Hypervisor
from ecompute.images import ImageCache
from ecompute.network import AddressPools
from ecompute.patience import Patience
from ecompute.placement_gate import Claims


@dataclass(frozen=True)
class World:
    """The parts of one host."""

    hypervisor: Hypervisor
    placement: Claims
    images: ImageCache
    disks: Disks
    networks: AddressPools
    metadata: MetadataStore
    blueprint: Blueprint
    patience: Patience
