"""The command ``rebuild``: a new disk for an instance, of its image or another one; everything else of it stays."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from common.errors import ConfigError
from common.hardware import USUAL, Hardware
from common.image_records import hardware_of
from common.model import ImageRef, InstanceSpec
from common.validate import is_image_name, parse_checksum, parse_image
from eschedule.changes import find, read, refuse_protected
from eschedule.commands import whom_of
from eschedule.confirming import NOT_DONE, is_meant
from eschedule.disk_edits import rebuilt
from eschedule.disk_waiting import ask_and_wait
from eschedule.follow import Goal
from eschedule.image_choice import check_choice
from eschedule.image_registry import registered
from eschedule.session import Session


def rebuild(session: Session, options: argparse.Namespace) -> int:
    """Run ``rebuild``; its exit code.

    Raises:
        ConfigError: the image does not go with the instance.
        EcomputeError: as ``ask_and_wait``.
    """
    whom = whom_of(options)
    if options.checksum is not None and options.image is None:
        raise ConfigError("--checksum is that of an image; give --image IMAGE with it")
    store, keys = session.store, session.keys
    specs = [read(store, keys, find(store, keys, who), who).spec for who in whom]
    for spec in specs:
        refuse_protected(spec, "rebuilt")
    names = ", ".join(spec.name for spec in specs)
    disk, it = ("its disk", "it") if len(specs) == 1 else ("their disks", "them")
    if not is_meant(session, options, f"rebuild {names}: make {disk} anew, with all that is on {it} lost?"):
        return NOT_DONE
    image, hardware = (None, None) if options.image is None else chosen(session, options.image, options.checksum, specs)
    return ask_and_wait(
        session, options, [spec.uuid for spec in specs], edit=rebuilt(image, hardware), goal=Goal.REBUILT, done="is rebuilt"
    )


def chosen(
    session: Session, image: str, checksum: str | None, specs: Iterable[InstanceSpec]
) -> tuple[ImageRef, Hardware]:  # fmt: skip
    """The *image* by its name or address, and what a guest of it needs, which all *specs* have to have room for.

    Raises:
        ConfigError: it is none, or does not go with one of them. Permanent: none of that name is registered.
    """
    if not is_image_name(image):
        return parse_image(image, checksum), USUAL
    wanted = None if checksum is None else parse_checksum(checksum)
    record = registered(session.store, session.keys, image)
    for spec in specs:
        check_choice(record, spec.resources, wanted, whose=spec.name)
    return record.ref, hardware_of(record)
