"""Takes this host out of the cluster: ``ecompute --leave``. Undoes what ecompute made on the host and in the services.

It refuses while anything of an instance is here, takes away in an order in which a crash leaves the rest for the next call, and
succeeds when there is nothing to take.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from uuid import UUID

from common.config import ComputeConfig
from common.errors import Conflict, OwnershipError
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import OwnerRecord
from common.placement import Placement
from common.retry import Backoff, Deadline, retry
from common.store import Store
from ecompute import identity
from ecompute.firewall_keeper import FirewallKeeper
from ecompute.hypervisor import Hypervisor
from ecompute.inventory import remove_provider
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.metadata_service import MetadataServiceSupervisor
from ecompute.network import AddressPools
from ecompute.nft import packet_filter
from ecompute.provider_lock import lock_provider
from ecompute.volume_book import read_volume
from ecompute.watcher import read_entry

logger = logging.getLogger(__name__)


class StillInUse(OwnershipError):
    """Instances or volumes are on this host: it cannot leave."""


def leave(config: ComputeConfig) -> None:
    """Remove this host's provider, keys, reserved addresses, metadata service and its address.

    Raises:
        OwnershipError: an ecompute still serves it, or instances are here; nothing was removed.
        Transient: a service is away; call it again.
    """
    hypervisor = LibvirtDriver(config.libvirt.uri)
    store = EtcdStore(config.etcd)
    placement = Placement(config.placement, etcd_prefix=config.etcd.prefix)
    keys = Keys(config.etcd.prefix)
    try:
        libvirt_host_uuid = hypervisor.host().libvirt_host_uuid
        provider = identity.provider_uuid(config.uuid, identity.machine_id(), libvirt_host_uuid)
        lock = lock_provider(config, provider)
    except BaseException:
        _close(hypervisor, store, placement)
        raise
    try:
        _refuse_another_machines(store, keys, provider, libvirt_host_uuid)
        refuse_with_instances(hypervisor, store, keys, provider)
        remove_provider(placement, provider, config.paths.state_dir)
        _delete(store, [keys.host(provider), keys.host_admin(provider)])
        networks = AddressPools(hypervisor, config.paths.state_dir / "network", reserve_ahead=0, network=config.network.name)
        networks.remove_all_unassigned()
        FirewallKeeper(config.paths.state_dir / "firewall", packet_filter(config.libvirt.uri)).remove_all()
        hypervisor.drop_filter()
        if config.metadata.mode == "managed":
            MetadataServiceSupervisor(config).stop_service(remove_address=True)
        # Last: as long as it is there, whoever removes this host knows that it is not done.
        _delete(store, [item.key for item in store.list(keys.statuses(provider)).items])
        _delete(store, [keys.owner(provider)])
    finally:
        lock.release()  # this process may go on, and serve, where it could not leave
        _close(hypervisor, store, placement)
    logger.info("this host has left: provider %s, its keys and its reserved addresses are gone", provider)


def _close(*services: LibvirtDriver | Store | Placement) -> None:
    for service in services:
        service.close()


def _refuse_another_machines(store: Store, keys: Keys, provider: UUID, libvirt_host_uuid: str) -> None:
    """A copied configuration must not take the machine that it was copied from out of the cluster."""
    found = store.get(keys.owner(provider))
    theirs = OwnerRecord.from_json(found.value) if found else None
    if theirs and theirs.libvirt_host_uuid != libvirt_host_uuid:
        raise OwnershipError(
            f"provider {provider} belongs to {theirs.name} (libvirt host uuid {theirs.libvirt_host_uuid}), not to this machine "
            f"({libvirt_host_uuid}): nothing was removed; if this host has a copied `uuid:` in compute.yaml, give it its own"
        )


def _delete(store: Store, keys: Iterable[str]) -> None:
    """Delete *keys*, whoever writes them meanwhile."""

    def delete(key: str) -> None:
        if (found := store.get(key)) is not None:
            store.delete(key, seen=found.mod_revision)

    for key in keys:
        retry(functools.partial(delete, key), on=Conflict, deadline=Deadline(5.0), backoff=Backoff(0.05, 0.5))


def refuse_with_instances(hypervisor: Hypervisor, store: Store, keys: Keys, provider: UUID) -> None:
    """Raises: StillInUse: requests, guests of ours that etcd has forgotten, or volumes are on this host."""
    names = []
    for item in store.list(keys.specs(provider)).items:
        spec = read_entry(item).spec
        names.append(spec.name if spec else item.key)
    names += [d.name for d in hypervisor.list() if d.stamp and d.stamp.provider == provider and d.name not in names]
    if names:
        shown = ", ".join(sorted(names)[:10])
        raise StillInUse(f"this host still has {len(names)} instances ({shown}): eschedule destroy them first")
    volumes = [read_volume(item).spec for item in store.list(keys.volumes(provider)).items]
    if volumes:
        shown = ", ".join(sorted(spec.name if spec else "?" for spec in volumes)[:10])
        raise StillInUse(f"this host still has {len(volumes)} volumes ({shown}): eschedule volume rm them first")
