"""One guest as its renderings see it: the metadata document, completed by what holds for every guest of this host.

Pure. All trees are made from this, so that they agree.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property

from common.metadata import MetadataDocument
from common.model import Address
from common.renderings.network import ip_addresses, of_version
from common.renderings.tree import Directory

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9@._+-]+")


@dataclass(frozen=True)
class Host:
    """What every guest of this host is told alike."""

    zone: str  # availability zone: the host's name, as guests on one host fail together
    architecture: str  # as uname says it


@dataclass(frozen=True)
class NamedKey:
    """A public key and the name under which it is listed; names are unique within a guest."""

    name: str
    line: str  # OpenSSH format


@dataclass(frozen=True)
class Guest:
    """The guest that asks."""

    document: MetadataDocument
    host: Host
    trees: dict[str, Directory] = field(default_factory=dict, compare=False, repr=False)  # made so far; ``app`` fills it

    @property
    def uuid(self) -> str:
        return str(self.document.uuid)

    @property
    def hostname(self) -> str:
        return self.document.hostname or self.document.name

    @property
    def primary(self) -> Address | None:
        """The first NIC."""
        return next(iter(self.document.addresses), None)

    @property
    def private_ipv4(self) -> str:
        """The first NIC's IPv4 address, "" where it has none that is known."""
        return next((str(one.ip) for one in of_version(ip_addresses(self.primary), 4)), "") if self.primary else ""

    @property
    def image_id(self) -> str:
        """The same for guests of one image; not the image's address itself, which may hold a password."""
        return f"ami-{hashlib.sha256(self.document.image.encode()).hexdigest()[:17]}"

    @property
    def instance_type(self) -> str:
        """The guest's size in words: there are no flavours."""
        resources = self.document.resources
        cpus = resources.get("VCPU", 0) + resources.get("PCPU", 0)
        return f"custom.{cpus}vcpu-{resources.get('MEMORY_MB', 0)}mib-{resources.get('DISK_GB', 0)}gib"

    @cached_property
    def user_data(self) -> bytes | None:
        """As it was given, None where there is none; decoded once for all trees.

        Raises:
            InvalidSpec: the document's text is no base64.
        """
        return self.document.user_data

    @cached_property
    def vendor_data(self) -> bytes | None:
        """What the operator gives to every guest, None where there is none. Raises as ``user_data`` does."""
        return self.document.vendor_data

    @cached_property
    def keys(self) -> tuple[NamedKey, ...]:
        """The keys by their comments; one without a comment, or with one that is taken, is numbered."""
        named: dict[str, str] = {}
        for number, line in enumerate(self.document.keys):
            name = key_name(line) or f"key-{number}"
            while name in named:
                name = f"{name}-{number}"
            named[name] = line
        return tuple(NamedKey(name, line) for name, line in named.items())


def key_name(line: str) -> str:
    """The comment of an OpenSSH public key, made fit for a path and a listing; "" where there is none."""
    words = line.split(None, 2)
    return _NOT_IN_A_NAME.sub("-", words[2]).strip("-.")[:64] if len(words) == 3 else ""
