"""What the loop looks at and acts on, in one value: facts are gathered from it, steps are done to it. Holds no logic."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.metadata import MetadataStore
from common.reports import ReportStore
from ecompute.blueprint import Blueprint
from ecompute.bridges import HostBridges
from ecompute.config_drive import ConfigDrives
from ecompute.disk_preparation import DiskPreparation
from ecompute.disks import Disks
from ecompute.firewall_keeper import FirewallKeeper
from ecompute.hypervisor import Hypervisor
from ecompute.images import ImageCache
from ecompute.network import AddressPools
from ecompute.patience import Patience
from ecompute.placement_gate import Claims
from ecompute.saved_memory import SavedMemory
from ecompute.volume_book import VolumeBook


@dataclass(frozen=True)
class World:
    """The parts of one host."""

    hypervisor: Hypervisor
    placement: Claims
    images: ImageCache
    disks: Disks
    preparation: DiskPreparation
    networks: AddressPools
    metadata: MetadataStore
    drives: ConfigDrives
    reports: ReportStore
    firewall: FirewallKeeper
    blueprint: Blueprint
    patience: Patience
    bridges: HostBridges = field(default_factory=HostBridges)
    volumes: VolumeBook = field(default_factory=VolumeBook)
    saved_memory: SavedMemory = field(default_factory=SavedMemory)
