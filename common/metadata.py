"""The per-instance metadata document: the file format in which ecompute tells md_server what a guest may know of itself.

``<directory>/<uuid>.json`` is the document and ``<directory>/by-address/<address>`` a relative symlink to it, one for each of
the instance's addresses. The document decides, the links are only an index: a link to a document that is gone, or that does not
claim the address, counts as absent. Files and links appear by rename, so that a reader never sees half of one; a crash between
any two lines leaves what the next ``write`` or ``remove`` of the same instance puts right. ecompute writes (one thread per
instance at a time). md_server looks at each request, and reads unless the ``Stamp`` of what it read last still holds. Knows
nothing of HTTP, etcd or libvirt.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import errno
import ipaddress
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from common.errors import EcomputeError, InvalidSpec, NoSpace, Transient, UnsupportedSchema
from common.hardware import USUAL, Hardware
from common.model import SCHEMA, Address, MetadataAccess, Record
from common.nics import AddressSource, link_local_address

LOCK_NAME = "md-server.lock"  # in the run directory; held by the one md-server of the host
SERVER_NAME = "etcd-compute"  # the Server header of every answer; by this a health check knows md-server from others
DIRECTORY_MODE = 0o750
FILE_MODE = 0o640  # user data may hold secrets
SETTLE_NS = 2_000_000_000
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True)
class MetadataDocument(Record):
    """What one guest may know of itself."""

    uuid: UUID
    name: str
    hostname: str = ""
    keys: tuple[str, ...] = ()  # OpenSSH public keys, one line each
    user_data_base64: str | None = None
    addresses: tuple[Address, ...] = ()  # in the order of the NICs; the first is the primary one
    image: str = ""  # as the user named it
    resources: dict[str, int] = dataclasses.field(default_factory=dict)  # VCPU, MEMORY_MB (MiB), DISK_GB (GiB)
    created_at: str = ""  # ISO 8601, UTC; for people
    access: MetadataAccess = MetadataAccess.OPTIONAL
    hop_limit: int = 1  # IP time to live of an answer that holds a session token
    vendor_data_base64: str | None = None  # what the operator gives to every guest of the host, beside its user data
    metadata_bridge: str = ""  # the host's bridge on which md-server answers
    hardware: Hardware = USUAL  # told nobody: by this a guest whose spec is lost keeps what it can drive
    schema: int = SCHEMA

    @property
    def user_data(self) -> bytes | None:
        """The user data as it was given, None where there is none.

        Raises:
            InvalidSpec: the document's text is no base64.
        """
        return self._decoded("user_data_base64", self.user_data_base64)

    @property
    def vendor_data(self) -> bytes | None:
        """The operator's data for every guest, None where there is none. Raises as ``user_data`` does."""
        return self._decoded("vendor_data_base64", self.vendor_data_base64)

    @property
    def index(self) -> frozenset[str]:
        """The addresses under which the document is found, in their normal form; none where nobody may read it by HTTP.

        An address means one guest on one wire only: beside the cards on libvirt's networks those count that are on md-server's
        own. The same address may be another guest's in a VLAN, and md-server could not tell who asks. One that was learned
        leads nowhere either: the guest said it, and could say another's.
        """
        if self.access is MetadataAccess.OFF:
            return frozenset()
        near = [nic for nic in self.addresses if not nic.bridge or (nic.bridge == self.metadata_bridge and not nic.vlan)]
        given = (nic for nic in near if nic.source is not AddressSource.LEARNED)
        assigned = (normal_address(address) for nic in given for address in nic.all_addresses)
        # A guest that has no address yet asks from the one that its card gives itself.
        return frozenset(assigned) | {link_local_address(nic.mac) for nic in near if _MAC.fullmatch(nic.mac)}

    def _decoded(self, field: str, value: str | None) -> bytes | None:
        if value is None:
            return None
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise InvalidSpec(f"MetadataDocument {self.uuid}: {field} is no base64: {error}") from error


@dataclass(frozen=True)
class ServiceNote:
    """What a running md-server says of itself in its lock file, by which ecompute knows whether it is the one it wants."""

    version: str
    listen: str  # address:port
    bridge: str  # "" where it manages no address
    directory: str  # of the documents
    ipv6: str = "off"  # "auto": where the bridge has it

    def as_note(self) -> dict[str, str]:
        return dataclasses.asdict(self)


class Stamp(NamedTuple):
    """One file's identity and age, by which a reader knows that what it read is still what is there."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    bytes: int

    def is_settled(self, now_ns: int) -> bool:
        """Whether another file cannot have the same stamp any more.

        File systems note times in steps of up to two seconds, and give a new file the number of one that was just removed.
        """
        return now_ns - max(self.modified_ns, self.changed_ns) > SETTLE_NS


def normal_address(text: str) -> str:
    """The one spelling of the IP address *text*: what IPv4 mapped into IPv6 stands for, else as ``ipaddress`` writes it.

    Raises:
        InvalidSpec: *text* is no IP address, or one that means something on one link only (with a scope id).
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidSpec(f"{text!r} is no IP address") from error
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise InvalidSpec(f"{text!r} has a scope id: it does not say which guest is meant")
        return str(address.ipv4_mapped or address)
    return str(address)


class MetadataStore:
    """The documents of one host, in *directory*, which the first ``write`` makes.

    Every method may raise ``Transient`` where the file system refuses (its text says which file and why), ``write`` also
    ``NoSpace``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index = directory / "by-address"

    def write(self, document: MetadataDocument) -> None:
        """Put *document* in place of the instance's former one; found by its addresses alone on return.

        Nothing is synced: a power cut takes the guest down too, and before it starts again what is missing is written anew.
        An address that another instance's document claims as well leads to the one that was there first, as long as that one
        does: neither guest is told of the other from one moment to the next.
        """
        target = self._path(document.uuid)
        with _translated("written to", target):
            self._index.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            mode = stat.S_IMODE(self._directory.stat().st_mode)
            if mode & 0o777 != DIRECTORY_MODE:  # mkdir gives parents the default mode
                # A group that the folder hands on stays: by that an md-server that is not root reads the documents.
                self._directory.chmod(DIRECTORY_MODE | (mode & stat.S_ISGID))
            _replace_file(target, _text(document))
            for address in sorted(document.index):
                if not self._is_anothers(address, document.uuid):
                    partial_name = _partial_link(document.uuid, address)
                    _replace_link(self._index / address, _link_target(document.uuid), partial_name)
            self._drop_links(document.uuid, keep=document.index)

    def remove(self, uuid: UUID) -> None:
        """Take the instance's document away, and the links that lead to it. Removing what is gone succeeds.

        The document goes last, so that it is there (``exists``) while anything is left to remove.
        """
        target = self._path(uuid)
        with _translated("removed from", target):
            if not self._directory.is_dir():
                return
            self._drop_links(uuid, keep=frozenset())
            _partial(target).unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            _sync_directory(self._directory)

    def exists(self, uuid: UUID) -> bool:
        """Whether there is anything of the instance to ``remove``, be it readable or not."""
        target = self._path(uuid)
        return target.exists() or _partial(target).exists()

    def read(self, uuid: UUID) -> MetadataDocument | None:
        """The instance's document, None where there is none.

        Raises:
            InvalidSpec: what is there is no document.
            UnsupportedSchema: a newer version wrote it.
        """
        return _read(self._path(uuid))

    def by_address(self, address: str) -> MetadataDocument | None:
        """The document of the instance that has *address*, None where no instance has it. Raises as ``read`` does."""
        wanted = normal_address(address)
        document = _read(self._index / wanted)
        return document if document is not None and wanted in document.index else None

    def stamp(self, address: str) -> Stamp | None:
        """What differs as soon as ``by_address`` of the same *address*, in its normal form, has something else to read; None
        where it has nothing to read. Look at the stamp first, read then: what was read is at least as new.
        """
        try:
            found = os.stat(f"{self._index}/{address}")  # noqa: PTH116 - asked for each request; a Path takes three times as long
        except FileNotFoundError:
            return None
        except OSError as error:
            with _translated("read from", self._index / address):
                raise error
        return Stamp(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def list(self) -> tuple[UUID, ...]:
        """The instances that have a document, be it readable or not."""
        with _translated("listed from", self._directory), contextlib.suppress(FileNotFoundError):
            return tuple(sorted(uuid for path in self._directory.iterdir() if (uuid := _uuid_of(path)) is not None))
        return ()

    def is_current(self, document: MetadataDocument) -> bool:
        """Whether ``write(document)`` would change nothing."""
        target = self._path(document.uuid)
        with _translated("read from", target):
            try:
                if target.read_bytes() != _text(document):
                    return False
            except FileNotFoundError:
                return False
            linked = {name for name, link in self._links() if link == _link_target(document.uuid)}
        if not linked <= document.index:
            return False
        return all(self._is_anothers(address, document.uuid) for address in document.index - linked)

    def _is_anothers(self, address: str, uuid: UUID) -> bool:
        """Whether *address* leads to the document of another instance than *uuid*, which claims it."""
        link = self._index / address
        try:
            if os.readlink(link) == _link_target(uuid):  # noqa: PTH115
                return False
            document = _read(link)
        except (OSError, InvalidSpec, UnsupportedSchema):  # there is no link, or nothing to read behind it
            return False
        return document is not None and address in document.index

    def _path(self, uuid: UUID) -> Path:
        return self._directory / f"{uuid}.json"

    def _links(self) -> Iterator[tuple[str, str]]:
        """Each link's name and where it leads."""
        try:
            names = os.listdir(self._index)  # noqa: PTH208 - and no Path below: all links are looked at for each instance
        except FileNotFoundError:
            return
        for name in names:
            try:
                yield name, os.readlink(f"{self._index}/{name}")  # noqa: PTH115
            except FileNotFoundError:  # another instance's thread removed it meanwhile
                continue
            except OSError as error:
                if error.errno != errno.EINVAL:  # it is no link
                    raise

    def _drop_links(self, uuid: UUID, keep: frozenset[str]) -> None:
        for name, link in self._links():
            if link == _link_target(uuid) and name not in keep:
                (self._index / name).unlink(missing_ok=True)


def _text(document: MetadataDocument) -> bytes:
    return (document.to_json() + "\n").encode()


def _read(path: Path) -> MetadataDocument | None:
    with _translated("read from", path):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return MetadataDocument.from_json(content.decode())
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"MetadataDocument: {path} is not UTF-8") from error


def _uuid_of(path: Path) -> UUID | None:
    with contextlib.suppress(ValueError):
        uuid = UUID(path.stem)
        return uuid if path.name == f"{uuid}.json" else None
    return None


def _link_target(uuid: UUID) -> str:
    return f"../{uuid}.json"


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _partial_link(uuid: UUID, address: str) -> str:
    """A name that no address has, so that it is never served, and that no two instances share."""
    return f"{address}.{uuid}.partial"


def _replace_file(path: Path, content: bytes) -> None:
    partial = _partial(path)
    partial.unlink(missing_ok=True)  # of a crash
    partial.touch(mode=0o600)  # never readable for others, however short
    with partial.open("wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        file.write(content)
    partial.replace(path)


def _replace_link(path: Path, target: str, partial_name: str) -> None:
    partial = path.with_name(partial_name)
    partial.unlink(missing_ok=True)  # of a crash
    partial.symlink_to(target)
    partial.replace(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(done: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"metadata could not be {done} {path}: {error.strerror or error}"
        translated: EcomputeError
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            translated = NoSpace(f"{text}: make room on that file system")
        else:
            translated = Transient(f"{text}: see to that file; it is tried again")
        raise translated from error
