"""Which disk bus and cards a guest was built with where its request says nothing and its host looked into the image.

``<directory>/<uuid>/hardware.json`` is written before the disk is there and goes with it: a guest keeps its hardware for as
long as it has its disk, whatever is configured later. Called by the preparation of disks; the blueprint reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from common.errors import Permanent
from common.files import file_errors, write_atomically
from common.hardware import CardModel, DiskBus, Hardware

NAME = "hardware.json"


class FoundHardware:
    """What was found for one host's guests, in the folders of their disks below *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, uuid: UUID) -> Hardware | None:
        """None where nobody has looked.

        Raises:
            Permanent, Transient: it is there and cannot be read: with other hardware the guest might not boot.
        """
        path = self._path(uuid)
        with file_errors("cannot read", path):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                return None
        try:
            found = json.loads(text)
            return Hardware(DiskBus(found["disk_bus"]), CardModel(found["card_model"]))
        except (ValueError, TypeError, KeyError) as error:
            raise Permanent(f"cannot read {path}: it is not in the form that it is kept in", "FileError") from error

    def keep(self, uuid: UUID, hardware: Hardware) -> None:
        """Note it; the instance's folder is there."""
        write_atomically(self._path(uuid), json.dumps(asdict(hardware)).encode())

    def _path(self, uuid: UUID) -> Path:
        return self._directory / str(uuid) / NAME
