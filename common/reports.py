"""What guests say of themselves: the file format in which md_server hands a guest's report to ecompute.

``<state_dir>/metadata/reports/<uuid>.json`` is the last report of one instance. md_server writes it, for guests that may be
hostile; so whatever is written, and whatever is read, is brought within the bounds of ``bounded`` first. After each write a
datagram with the instance's uuid goes to the socket ``<run_dir>/reports.sock``, where ecompute listens: a bell, no message.
Files appear by rename; nothing is synced, as a power cut takes the guest down too. Knows nothing of HTTP, etcd or libvirt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.errors import InvalidSpec
from common.files import PARTIAL, file_errors
from common.model import SCHEMA, Record

DIRECTORY_NAME = "reports"  # in the directory of the metadata documents
SOCKET_NAME = "reports.sock"  # in the run directory
DIRECTORY_MODE = 0o750
FILE_MODE = 0o640
MESSAGE_BYTES = 1024  # of UTF-8
MOST_HOST_KEYS = 8  # sshd has three or four
EVERY_SECONDS = 2.0  # a guest that reports more often is refused by md_server; ecompute looks so often at first
# md_server may be another user: a link or a pipe of its making must not lead root elsewhere, nor hold it up.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_FILE_BYTES = 8192  # more than the largest report comes to, whatever it is made of
# As ``ssh-keygen -l`` prints it: the digest of the key in base64 without padding, and its type.
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43} \([A-Z0-9-]{1,24}\)")
_TIME = re.compile(r"[0-9T:.Z+-]{1,40}")


@dataclass(frozen=True)
class GuestReport(Record):
    """What a guest said of itself, and when md_server heard it. Nobody has to believe it."""

    at: str  # ISO 8601, UTC, by md_server's clock; for people, and to tell one report from another
    message: str = ""
    host_keys: tuple[str, ...] = ()  # fingerprints of its ssh host keys: "SHA256:… (ED25519)"
    schema: int = SCHEMA

    def bounded(self) -> GuestReport:
        """This report within its bounds: one printable line of at most ``MESSAGE_BYTES``, at most ``MOST_HOST_KEYS``
        fingerprints and none that is none. A report that keeps to them comes out equal.
        """
        keys = tuple(dict.fromkeys(key for key in self.host_keys if _FINGERPRINT.fullmatch(key)))[:MOST_HOST_KEYS]
        at = self.at if _TIME.fullmatch(self.at) else ""
        return dataclasses.replace(self, at=at, message=_one_line(self.message), host_keys=keys)


class ReportStore:
    """The last report of each instance of one host, in *directory*, which the first ``write`` makes.

    Every method may raise ``Transient`` or ``Permanent`` where the file system refuses, ``write`` also ``NoSpace``. One process
    writes, one thread at a time; any may read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, uuid: UUID, report: GuestReport) -> None:
        """Put *report*, within its bounds, in place of the instance's former one."""
        path = self._path(uuid)
        partial = path.with_name(path.name + PARTIAL)  # one writer: a name that a crash leaves is used again
        with file_errors("a guest's report cannot be written", path):
            self._directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write((report.bounded().to_json() + "\n").encode())
            partial.rename(path)

    def read(self, uuid: UUID) -> GuestReport | None:
        """The instance's last report, within its bounds; None where there is none.

        Raises:
            InvalidSpec: what is there is no report.
            UnsupportedSchema: a newer version wrote it.
        """
        path = self._path(uuid)
        with file_errors("a guest's report cannot be read", path):
            try:
                with os.fdopen(os.open(path, _READ), "rb") as file:
                    content = file.read(_MOST_FILE_BYTES + 1)
            except FileNotFoundError:
                return None
        if len(content) > _MOST_FILE_BYTES:
            raise InvalidSpec(f"GuestReport: {path} is longer than {_MOST_FILE_BYTES} bytes; remove it")
        try:
            return GuestReport.from_json(content.decode()).bounded()
        except UnicodeDecodeError as error:
            raise InvalidSpec(f"GuestReport: {path} is not UTF-8; remove it") from error

    def remove(self, uuid: UUID) -> None:
        """Take the instance's report away. Removing what is gone succeeds."""
        path = self._path(uuid)
        with file_errors("a guest's report cannot be removed", path):
            path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def list(self) -> tuple[UUID, ...]:
        """The instances that have a report, be it readable or not."""
        with file_errors("guests' reports cannot be listed", self._directory):
            try:
                names = os.listdir(self._directory)  # noqa: PTH208 - their names are all that is looked at
            except FileNotFoundError:
                return ()
        return tuple(sorted(uuid for name in names if (uuid := _uuid_of(name)) is not None))

    def _path(self, uuid: UUID) -> Path:
        return self._directory / f"{uuid}.json"


def report_store(state_dir: Path) -> ReportStore:
    """The reports of the host whose state is in *state_dir*."""
    return ReportStore(state_dir / "metadata" / DIRECTORY_NAME)


def _one_line(text: str) -> str:
    """*text* with spaces for all that a terminal would obey, cut to ``MESSAGE_BYTES`` where no character is cut through."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * MESSAGE_BYTES]).strip()
    return printable.encode()[:MESSAGE_BYTES].decode(errors="ignore").strip()


def _uuid_of(name: str) -> UUID | None:
    with contextlib.suppress(ValueError):
        uuid = UUID(name.partition(".")[0])
        return uuid if name in (f"{uuid}.json", f"{uuid}.json{PARTIAL}") else None
    return None
