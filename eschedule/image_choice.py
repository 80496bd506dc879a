"""What a request becomes when its image is a registered one: its address, checksum, and the hardware that it needs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from common.errors import ConfigError, Permanent
from common.hardware import Hardware
from common.image_records import ImageRecord, hardware_of, says_hardware, with_image_content
from common.validate import parse_image
from eschedule.request import Request

RegisteredImage = Callable[[str], ImageRecord]


def none_registered(name: str) -> ImageRecord:
    """The image of who has no store to ask.

    Raises:
        Permanent: always.
    """
    raise Permanent(f"there is no image {name}; see: eschedule image list", "NotFound")


def made_of(request: Request, record: ImageRecord, checksum: str | None = None) -> Request:
    """*request*, for guests of the image *record*. What it says is copied: it counts however the name is used later.

    Args:
        checksum: what the user wants it to have; None for whatever is registered.

    Raises:
        ConfigError: the request is too small for the image, its checksum is another, or the record was spoilt by hand.
        UnsupportedSchema: the image needs what this version does not know.
    """
    hardware = check_choice(record, request.resources, checksum)
    return replace(
        request, image=record.ref, hardware=hardware, hardware_is_given=says_hardware(record),
        disk_content=with_image_content(record, request.disk_content),
    )  # fmt: skip


def check_choice(
    record: ImageRecord, resources: Mapping[str, int], checksum: str | None, *, whose: str = "the request"
) -> Hardware:
    """What guests of the image *record* need, whose claim is *resources*.

    Args:
        whose: *resources* they are, for messages.

    Raises:
        ConfigError, UnsupportedSchema: as ``made_of``.
    """
    if checksum not in (None, record.checksum):
        raise ConfigError(
            f"the image {record.name} is registered with the checksum {record.checksum}, not {checksum}; leave --checksum out, "
            f"or give the image's URL instead of its name: {record.url}"
        )
    hardware = hardware_of(record)
    least = {"DISK_GB": record.min_disk_gib, "MEMORY_MB": record.min_memory_mib}
    short = [f"{name}:{amount}" for name, amount in least.items() if resources.get(name, 0) < amount]
    if short:
        asked = ", ".join(f"{name.partition(':')[0]}:{resources.get(name.partition(':')[0], 0)}" for name in short)
        raise ConfigError(f"the image {record.name} needs at least {', '.join(short)}; {whose} has {asked}: ask for more")
    parse_image(record.url, record.checksum)  # whoever wrote it: a request has no address and no checksum that a host refuses
    return hardware
