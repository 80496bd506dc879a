"""What the operator gives to every guest of this host beside its own user data: the file ``metadata.vendor_data_file``.

It is read once, when ecompute starts, and becomes part of each guest's metadata document, those of running guests included.
"""

from __future__ import annotations

import base64
from pathlib import Path

from common.config_checks import VENDOR_DATA_MOST_BYTES, vendor_data_size_fault
from common.errors import ConfigError


def read_vendor_data(path: Path | None) -> str | None:
    """The content of *path* in base64, as a metadata document has it; None where no file is named.

    Raises:
        ConfigError: it cannot be read, is larger than 64 KiB, or is no text, which is all that JSON can carry to a guest.
    """
    if path is None:
        return None
    where = f"metadata.vendor_data_file is {path}, which"
    try:
        with path.open("rb") as file:
            content = file.read(VENDOR_DATA_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    if fault := vendor_data_size_fault(len(content)):
        raise ConfigError(f"{where} {fault}")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is no UTF-8 text (byte {error.start + 1}); needs what cloud-init reads as text, such as #cloud-config"
        ) from error
    return base64.b64encode(content).decode()
