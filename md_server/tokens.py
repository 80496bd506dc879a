"""Session tokens as EC2 has them: what a guest shows to prove that it could send a PUT and read the answer.

A token is a time and a seal over that time and the guest's uuid: nothing is kept of it, it is worth nothing for another guest,
and it holds while the secret does. That is a file in the run directory, so that tokens outlive a restart of md_server; a reboot
of the host ends them with the guests. Pure but for ``secret_in``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from common.errors import EcomputeError

MOST_TTL_SECONDS = 21600  # EC2's: six hours
SECRET_NAME = "md-server.secret"  # noqa: S105 - the name of the file
_SECRET_BYTES = 32
_STEP_SECONDS = 300
_TIME_BYTES = 5  # of seconds since 1970
_SEAL_BYTES = hashlib.sha256().digest_size
TOKEN_CHARACTERS = (_TIME_BYTES + _SEAL_BYTES + 2) // 3 * 4


class Tokens:
    """Issues and judges tokens.

    Args:
        secret: what they are sealed with.
        clock: seconds since 1970: a token has to mean the same to the next md_server.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._clock = secret, clock

    def issue(self, uuid: UUID, ttl_seconds: int) -> str:
        """A token for the guest *uuid*, good for *ttl_seconds*."""
        until = (int(self._clock()) + ttl_seconds).to_bytes(_TIME_BYTES, "big")
        return base64.urlsafe_b64encode(until + self._seal(uuid, until)).decode().rstrip("=")

    def is_good(self, uuid: UUID, token: str) -> bool:
        """Whether *token* was issued to the guest *uuid* and is not over."""
        if len(token) > TOKEN_CHARACTERS or not token.isascii():
            return False
        try:
            found = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return False
        until, seal = found[:_TIME_BYTES], found[_TIME_BYTES:]
        # Whoever set the host's clock back must not have made a token that holds for years; a small step back is NTP's.
        left = int.from_bytes(until, "big") - self._clock()
        return hmac.compare_digest(seal, self._seal(uuid, until)) and 0 < left <= MOST_TTL_SECONDS + _STEP_SECONDS

    def _seal(self, uuid: UUID, until: bytes) -> bytes:
        return hmac.digest(self._secret, uuid.bytes + until, "sha256")


def ttl_of(text: str) -> int | None:
    """The seconds that a guest asks for, None where they are none that it may have."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    seconds = int(text)
    return seconds if 1 <= seconds <= MOST_TTL_SECONDS else None


def secret_in(directory: Path) -> bytes:
    """The secret in *directory*; made where there is none, or none that is whole and nobody else's to read.

    For the one md_server of the host, which holds its lock.

    Raises:
        EcomputeError: the file system refused.
    """
    path = directory / SECRET_NAME
    try:
        found = _kept_secret(path)
        if found is None:
            found = os.urandom(_SECRET_BYTES)
            _write(path, found)
    except OSError as error:
        why = f"{path}: {error.strerror or error}"
        raise EcomputeError(f"the secret of session tokens cannot be kept in {why}: see to that folder") from error
    return found


def _kept_secret(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        is_private = os.fstat(file.fileno()).st_mode & 0o077 == 0
        found = file.read(_SECRET_BYTES + 1)
    return found if is_private and len(found) == _SECRET_BYTES else None


def _write(path: Path, secret: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a crash
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    partial.replace(path)
