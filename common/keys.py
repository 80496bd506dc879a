"""Every etcd key of etcd-compute: built here, parsed here, spelled nowhere else.

The keys and who writes them are listed in ``docs/architecture.md``. A ``Keys`` is bound to one prefix
(``/etcd-compute/v1/`` by default) and is a value: share it freely. Two deployments on one etcd differ by their prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

DEFAULT_PREFIX = "/etcd-compute/v1/"


@dataclass(frozen=True)
class Keys:
    """Key names under one *prefix*, which starts and ends with a slash."""

    prefix: str = DEFAULT_PREFIX

    def owner(self, provider: UUID) -> str:
        return f"{self.prefix}owners/{provider}"

    def owners(self) -> str:
        return f"{self.prefix}owners/"

    def host(self, provider: UUID) -> str:
        return f"{self.prefix}hosts/{provider}"

    def hosts(self) -> str:
        return f"{self.prefix}hosts/"

    def host_admin(self, provider: UUID) -> str:
        return f"{self.prefix}host-admin/{provider}"

    def host_admins(self) -> str:
        return f"{self.prefix}host-admin/"

    def instance(self, instance: UUID) -> str:
        return f"{self.prefix}instances/{instance}"

    def instances(self) -> str:
        return f"{self.prefix}instances/"

    def spec(self, provider: UUID, instance: UUID) -> str:
        return f"{self.prefix}spec/{provider}/{instance}"

    def specs(self, provider: UUID | None = None) -> str:
        """The prefix of one provider's specs, or of all."""
        return f"{self.prefix}spec/{provider}/" if provider else f"{self.prefix}spec/"

    def status(self, provider: UUID, instance: UUID) -> str:
        return f"{self.prefix}status/{provider}/{instance}"

    def statuses(self, provider: UUID | None = None) -> str:
        """The prefix of one provider's statuses, or of all."""
        return f"{self.prefix}status/{provider}/" if provider else f"{self.prefix}status/"

    def name(self, name: str) -> str:
        return f"{self.prefix}names/{name}"

    def names(self) -> str:
        return f"{self.prefix}names/"

    def group(self, group: str, provider: UUID) -> str:
        """The members of *group* on *provider*."""
        return f"{self.prefix}groups/{group}/{provider}"

    def group_anchor(self, group: str) -> str:
        """Under strict affinity the provider's uuid that the whole group lives on; else absent."""
        return f"{self.prefix}groups/{group}/anchor"

    def groups(self, group: str | None = None) -> str:
        """The prefix of one group's keys, or of all groups'."""
        return f"{self.prefix}groups/{group}/" if group else f"{self.prefix}groups/"

    def network(self, name: str) -> str:
        """A network that hosts share, with its pool of addresses."""
        return f"{self.prefix}networks/{name}"

    def networks(self) -> str:
        return f"{self.prefix}networks/"

    def network_address(self, network: str, address: str) -> str:
        """Absent while *address* is free, else the uuid of the instance that has it."""
        return f"{self.prefix}network-addresses/{network}/{address}"

    def network_addresses(self, network: str | None = None) -> str:
        """The prefix of one network's addresses in use, or of all networks'."""
        return f"{self.prefix}network-addresses/{network}/" if network else f"{self.prefix}network-addresses/"

    def parse_network_address(self, key: str) -> tuple[str, str]:
        """The network and the address of a ``network-addresses/`` key.

        Raises:
            ValueError: *key* is no such key under this prefix.
        """
        network, slash, address = key.removeprefix(self.network_addresses()).partition("/")
        if not key.startswith(self.network_addresses()) or not (network and slash and address):
            raise ValueError(f"{key} is no address key under {self.prefix}")
        return network, address

    def ssh_key(self, name: str) -> str:
        return f"{self.prefix}ssh-keys/{name}"

    def ssh_keys(self) -> str:
        return f"{self.prefix}ssh-keys/"

    def image(self, name: str) -> str:
        """An image that requests may name."""
        return f"{self.prefix}images/{name}"

    def images(self) -> str:
        return f"{self.prefix}images/"

    def volume(self, provider: UUID, volume: UUID) -> str:
        return f"{self.prefix}volumes/{provider}/{volume}"

    def volumes(self, provider: UUID | None = None) -> str:
        """The prefix of one provider's volumes, or of all."""
        return f"{self.prefix}volumes/{provider}/" if provider else f"{self.prefix}volumes/"

    def volume_status(self, provider: UUID, volume: UUID) -> str:
        return f"{self.prefix}volume-status/{provider}/{volume}"

    def volume_statuses(self, provider: UUID | None = None) -> str:
        """The prefix of one provider's statuses of volumes, or of all."""
        return f"{self.prefix}volume-status/{provider}/" if provider else f"{self.prefix}volume-status/"

    def volume_name(self, name: str) -> str:
        """Where the volume of that name is."""
        return f"{self.prefix}volume-names/{name}"

    def volume_names(self) -> str:
        return f"{self.prefix}volume-names/"

    def parse_provider_volume(self, key: str) -> tuple[UUID, UUID]:
        """The provider and volume of a ``volumes/`` or ``volume-status/`` key.

        Raises:
            ValueError: *key* is no such key under this prefix.
        """
        kind, _, rest = key.removeprefix(self.prefix).partition("/")
        provider, slash, volume = rest.partition("/")
        if not key.startswith(self.prefix) or kind not in ("volumes", "volume-status") or not slash:
            raise ValueError(f"{key} is no key of a volume under {self.prefix}")
        return UUID(provider), UUID(volume)

    def event(self, subject: str, uuid: UUID, writer: UUID | str, place: int | str) -> str:
        """One of the places of *writer* in the journal of *uuid*, an instance or a host; on the journal's lease."""
        return f"{self.events_of(subject, uuid)}{writer}-{place}"

    def events_of(self, subject: str, uuid: UUID) -> str:
        return f"{self.events()}{subject}/{uuid}/"

    def events(self) -> str:
        return f"{self.prefix}_journal/events/"

    def after_journal(self) -> str:
        """All other keys sort behind it: the journal has a name that sorts first, for whoever reads everything else."""
        return f"{self.prefix}_journal0"

    def former_name(self, name: str, instance: UUID) -> str:
        """Which instance had a name; on the journal's lease."""
        return f"{self.former_names(name)}{instance}"

    def former_names(self, name: str) -> str:
        return f"{self.prefix}_journal/former-names/{name}/"

    def mail(self, provider: UUID, letter: UUID) -> str:
        """A small request to a host that is no state; leased."""
        return f"{self.prefix}mail/{provider}/{letter}"

    def mails(self, provider: UUID) -> str:
        return f"{self.prefix}mail/{provider}/"

    def mail_reply(self, letter: UUID) -> str:
        return f"{self.prefix}mail-reply/{letter}"

    def mail_replies(self) -> str:
        return f"{self.prefix}mail-reply/"

    def parse_letter(self, key: str) -> UUID:
        """The letter of a ``mail/`` or ``mail-reply/`` key.

        Raises:
            ValueError: *key* is no such key under this prefix.
        """
        kind, _, rest = key.removeprefix(self.prefix).partition("/")
        if not key.startswith(self.prefix) or kind not in ("mail", "mail-reply"):
            raise ValueError(f"{key} is no mail key under {self.prefix}")
        return UUID(rest.rpartition("/")[2])

    def parse_provider_instance(self, key: str) -> tuple[UUID, UUID]:
        """The provider and instance of a spec or status key.

        Raises:
            ValueError: *key* is no such key under this prefix.
        """
        kind, _, rest = key.removeprefix(self.prefix).partition("/")
        provider, slash, instance = rest.partition("/")
        if not key.startswith(self.prefix) or kind not in ("spec", "status") or not slash:
            raise ValueError(f"{key} is no spec or status key under {self.prefix}")
        return UUID(provider), UUID(instance)

    def parse_host(self, key: str) -> UUID:
        """The provider of a ``hosts/``, ``owners/`` or ``host-admin/`` key.

        Raises:
            ValueError: *key* is no such key under this prefix.
        """
        kind, _, provider = key.removeprefix(self.prefix).partition("/")
        if not key.startswith(self.prefix) or kind not in ("hosts", "owners", "host-admin"):
            raise ValueError(f"{key} is no host key under {self.prefix}")
        return UUID(provider)
