"""The images that are registered under names: ``images/<name>``, made by an operator, and what their properties mean. Pure.

A record always has a checksum: a name means the same bytes for as long as it is there. Requests copy what they need of it, so
that no host looks here, and a record may go while instances are made from it.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from common.disk_content import DiskContent
from common.errors import UnsupportedSchema
from common.hardware import CardModel, DiskBus, Hardware
from common.model import SCHEMA, ImageRef, Record


class Switch(enum.StrEnum):
    """Yes or no."""

    TRUE = "true"
    FALSE = "false"


# The properties that are honoured, those that Glance has by its names, and their values; None where any text will do, as it is
# for people.
PROPERTIES: dict[str, type[enum.StrEnum] | None] = {
    "hw_disk_bus": DiskBus, "hw_vif_model": CardModel, "os_distro": None, "os_resize": Switch, "os_inject_identity": Switch,
}  # fmt: skip
_OF_HARDWARE = ("hw_disk_bus", "hw_vif_model")


@dataclass(frozen=True)
class ImageRecord(Record):
    """An image that requests may name.

    Args:
        url: as in ``ImageRef``; what is fetched.
        checksum: as in ``ImageRef``; never missing.
        checksum_url: where the checksum was read when the image was registered, for people; "" where it was given.
        min_disk_gib, min_memory_mib: what a request must ask for at least; 0 for anything.
        user: whom to log in as, for people; "" where nobody said.
        properties: by Glance's names, see ``PROPERTIES``.
    """

    name: str
    url: str
    checksum: str
    checksum_url: str = ""
    min_disk_gib: int = 0
    min_memory_mib: int = 0
    user: str = ""
    properties: dict[str, str] = dataclasses.field(default_factory=dict)
    created_at: str = ""
    created_by: str = ""
    schema: int = SCHEMA

    @property
    def ref(self) -> ImageRef:
        """What a spec says of the image."""
        return ImageRef(self.url, self.checksum, self.name)


def hardware_of(record: ImageRecord) -> Hardware:
    """The hardware that a guest of the image needs.

    Raises:
        UnsupportedSchema: a property is not known here: a newer version would make another guest of the image.
    """
    for name, value in record.properties.items():
        kind = PROPERTIES.get(name)
        if name not in PROPERTIES or (kind is not None and value not in list(kind)):
            raise UnsupportedSchema(
                f"the image {record.name} has the property {name}={value}, which this version does not know: upgrade it, "
                f"or register the image without: eschedule image show {record.name}"
            )
    disk_bus, card_model = (record.properties.get(name, "virtio") for name in _OF_HARDWARE)
    return Hardware(DiskBus(disk_bus), CardModel(card_model))


def says_hardware(record: ImageRecord) -> bool:
    """Whether whoever registered the image said what hardware it needs, be it the usual one."""
    return any(name in record.properties for name in _OF_HARDWARE)


def with_image_content(record: ImageRecord, asked: DiskContent) -> DiskContent:
    """What is to be on the disk of a guest of the image where its request has *asked* for that."""
    return dataclasses.replace(
        asked,
        resize=asked.resize or record.properties.get("os_resize") == Switch.TRUE,
        identity=asked.identity or record.properties.get("os_inject_identity") == Switch.TRUE,
    )
