"""The program eschedule as a process, over real etcd and Placement, with stand-ins for the hosts' ecompute.

A ``Site`` is one deployment with a prefix of its own; its Placement belongs to the test module, so that only its own hosts are
counted. A ``StandInHost`` is alive, has inventory, and does what an ecompute would tell of: it writes statuses, and ends
instances whose end is asked for; how long a build takes, or how it fails, the test decides.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml

from common import groups
from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.groups import GroupChange
from common.keys import Keys
from common.model import Address, Desired, HostRecord, InstanceSpec, InstanceStatus, OwnerRecord, Phase, Progress
from common.network_records import address_keys
from common.placement import OWNER_TRAIT, Placement
from common.store import ListWatch, Transaction, Versioned
from tests.support.etcd import EtcdServer, unique_prefix
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.placement import PlacementServer, client_for, make_provider
from tests.support.processes import VENV_BIN, as_a_child, wait_until

QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
IMAGE = "/srv/images/tiny.qcow2"
ADDRESS = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50")
Build = Callable[["StandInHost", InstanceSpec], None]


class Site:
    """One deployment: its store and Placement for the test, and its configuration for the program."""

    def __init__(self, directory: Path, etcd: EtcdServer, placement: PlacementServer) -> None:
        self.directory = directory
        self.prefix = unique_prefix()
        self.keys = Keys(self.prefix)
        self.etcd, self.placement_server = etcd, placement
        self.store = EtcdStore(EtcdConfig(endpoints=(etcd.endpoint,), prefix=self.prefix, deadline_seconds=30))
        self.placement: Placement = client_for(placement.url, etcd_prefix=self.prefix)
        self.hosts: list[StandInHost] = []
        self.configure()

    def configure(
        self, *, placement_url: str | None = None, placement_seconds: float = 30, etcd_seconds: float = 30, **more: Any
    ) -> None:
        """Write schedule.yaml anew; the deadlines are those of a machine that is busy with other tests."""
        values = {
            "etcd": {"endpoints": [self.etcd.endpoint], "prefix": self.prefix, "deadline_seconds": etcd_seconds},
            "placement": {
                "url": placement_url or self.placement_server.url,
                "timeout_seconds": min(20, placement_seconds),
                "deadline_seconds": placement_seconds,
            },
            "wait_seconds": 60,
            **more,
        }
        (self.directory / "schedule.yaml").write_text(yaml.safe_dump(values))

    def host(self, name: str, *, build: Build | None = None, traits: Sequence[str] = (), **inventory: int) -> StandInHost:
        host = StandInHost(self, name, build=build, traits=traits, **inventory)
        self.hosts.append(host)
        return host

    # -- the program ------------------------------------------------------------------------------------------------------

    def spawn(self, *arguments: str, more_env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """The program, with the site's configuration in its working directory."""
        usual = {
            "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "preexec_fn": as_a_child,
        }  # fmt: skip
        return subprocess.Popen(
            [str(VENV_BIN / "eschedule"), *arguments], cwd=self.directory, text=True,
            env={**os.environ, "HOME": str(self.directory), "COLUMNS": "120", **(more_env or {})}, **{**usual, **options},
        )  # fmt: skip

    def run(self, *arguments: str, timeout_seconds: float = 120) -> subprocess.CompletedProcess[str]:
        process = self.spawn(*arguments)
        try:
            output, errors = process.communicate(timeout=timeout_seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def interrupted(self, process: subprocess.Popen[str], when: Callable[[], bool], number: int = signal.SIGINT) -> str:
        """Send *process* a signal once *when* holds; what it said on standard error."""
        wait_until(when, timeout_seconds=60, what="the moment for the signal")
        process.send_signal(number)
        return process.communicate(timeout=120)[1]

    def signalled_between_claim_and_record(self, method: str, number: int, *arguments: str) -> tuple[int, str]:
        """Run the program with a signal that comes once its claim, made with *method*, stands; its exit code and its errors."""
        proxy = FaultyProxy(self.placement_server.port)
        try:
            self.configure(placement_url=proxy.url)
            proxy.inject(Fault.HOLD_ANSWER, method, "/allocations")
            process = self.spawn(*arguments)
            wait_until(self.claimed, timeout_seconds=60, what="the claim is made")
            process.send_signal(number)
            time.sleep(0.2)  # the signal is to come first, which nothing shows
            assert process.poll() is None
            proxy.released.set()
            errors = process.communicate(timeout=120)[1]
        finally:
            proxy.close()
        return process.returncode, errors

    # -- what is there ----------------------------------------------------------------------------------------------------

    def recorded(self) -> set[str]:
        """Every key of instances."""
        keys = self.keys
        kinds = (
            keys.instances(), keys.specs(), keys.statuses(), keys.names(), keys.groups(), keys.network_addresses(),
        )  # fmt: skip
        return {item.key for kind in kinds for item in self.store.list(kind).items}

    def claimed(self) -> set[UUID]:
        return {consumer for host in self.hosts for consumer in self.placement.provider_allocations(host.provider)}

    def uuid_of(self, name: str) -> UUID:
        item = self.store.get(self.keys.name(name))
        assert item is not None, f"there is no {name}"
        return UUID(item.value)

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.placement.close()
        self.store.close()


def builds_at_once(host: StandInHost, spec: InstanceSpec) -> None:
    host.report(spec, Phase.RUNNING, addresses=(ADDRESS,), booted=spec.boot_request)


def never_ends(host: StandInHost, spec: InstanceSpec) -> None:
    host.report(spec, Phase.BUILDING, progress=Progress("FetchImage", 1024 * 1024, 4 * 1024 * 1024))


def fails(host: StandInHost, spec: InstanceSpec) -> None:
    host.report(spec, Phase.FAILED, failure="ImageNotFound", message=f"{spec.image.url} is not there")
    host.release(spec.uuid)


class StandInHost:
    """One host: a provider with inventory, a host key, and a thread that answers specs."""

    def __init__(
        self, site: Site, name: str, *, build: Build | None = None, traits: Sequence[str] = (), **inventory: int
    ) -> None:
        self.site, self.name, self.build = site, name, build or builds_at_once
        self.provider = make_provider(site.placement, traits=(OWNER_TRAIT, *traits), **inventory)
        capacity = {"VCPU": 8, "MEMORY_MB": 8192, "DISK_GB": 100}
        self.record = HostRecord(
            name, "boot", uuid4(), "libvirt", "test:///default", capacity=capacity, since="2026-01-01T00:00:00.000Z"
        )
        site.store.create(site.keys.owner(self.provider), OwnerRecord("machine", "libvirt", name).to_json())
        self.be_alive()
        self._stop = threading.Event()
        watch = ListWatch(site.store, site.keys.specs(self.provider), self._answer)
        self._thread = threading.Thread(target=watch.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def be_alive(self) -> None:
        self.site.store.create(self.site.keys.host(self.provider), self.record.to_json())

    def die(self) -> None:
        self.site.store.commit(Transaction(deletes=(self.site.keys.host(self.provider),)))

    def report(self, spec: InstanceSpec, phase: Phase, **fields: Any) -> None:
        """Write the status of *spec* as it is now."""
        keys = self.site.keys
        item = self.site.store.get(keys.spec(self.provider, spec.uuid))
        revision = item.mod_revision if item else 0
        status = InstanceStatus(phase, spec_revision=revision, boot_request=spec.boot_request, **fields)
        self.site.store.commit(Transaction(puts={keys.status(self.provider, spec.uuid): status.to_json()}))

    def release(self, instance: UUID) -> None:
        held = self.site.placement.consumer(instance)
        if held is not None:
            self.site.placement.release(instance, held.generation)

    def move(self, name: str, target: StandInHost) -> None:
        """Move an instance to *target* as a reschedule does, without its claim."""
        keys, instance = self.site.keys, self.site.uuid_of(name)
        spec, place = self.site.store.get(keys.spec(self.provider, instance)), self.site.store.get(keys.instance(instance))
        assert spec and place
        self.site.store.commit(
            Transaction(
                puts={
                    keys.spec(target.provider, instance): spec.value,
                    keys.instance(instance): place.value.replace(str(self.provider), str(target.provider)),
                },
                deletes=(spec.key, keys.status(self.provider, instance)),
            )
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _answer(self, _key: str, item: Versioned | None) -> None:
        if item is None:
            return
        spec = InstanceSpec.from_json(item.value)
        if spec.desired is Desired.RUNNING:
            self.build(self, spec)
        elif spec.desired is Desired.STOPPED:
            self.report(spec, Phase.STOPPED, addresses=(ADDRESS,))
        else:
            self._forget(spec)

    def _forget(self, spec: InstanceSpec) -> None:
        self.release(spec.uuid)
        keys, leaving = self.site.keys, GroupChange()
        if spec.group:
            found = self.site.store.get_many(groups.keys_to_read(keys, spec.group, self.provider))
            leaving = groups.leave(keys, spec.group, provider=self.provider, instance=spec.uuid, found=found)
        own = (
            keys.spec(self.provider, spec.uuid), keys.status(self.provider, spec.uuid), keys.instance(spec.uuid),
            keys.name(spec.name), *address_keys(keys, spec.nics),
        )  # fmt: skip
        self.site.store.commit(Transaction(leaving.compares, leaving.puts, (*own, *leaving.deletes)))


@pytest.fixture(scope="module")
def module_placement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    """A Placement for the tests of one module, in which nobody else makes hosts of ours."""
    server = PlacementServer(tmp_path_factory.mktemp("placement"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def site(tmp_path: Path, etcd: EtcdServer, module_placement: PlacementServer) -> Iterator[Site]:
    """A deployment of the test's own, without hosts; its providers leave Placement with it."""
    made = Site(tmp_path, etcd, module_placement)
    yield made
    for host in made.hosts:
        host.close()
        for consumer in made.placement.provider_allocations(host.provider):
            host.release(consumer)
        made.placement.delete_provider(host.provider)
    made.close()
