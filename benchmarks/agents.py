"""Many hosts in one process: real ecompute agents over libvirt's test driver, each with a provider and folders of its own.

    python -m benchmarks.agents --first 0 --count 125 --directory /tmp/x --etcd http://… --prefix /bench/ --placement http://…

What belongs to a machine rather than to its daemon is left out: no metadata service, no metrics, no probe of KVM. Everything
else is as ``ecompute.main`` has it, but for the folders. SIGTERM stops all of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid5

from common.config import (
    BuilderConfig,
    ComputeConfig,
    EtcdConfig,
    InventoryConfig,
    LibvirtConfig,
    LogConfig,
    MetadataConfig,
    MetricsConfig,
    NetworkConfig,
    PathsConfig,
    PlacementConfig,
    ResourceConfig,
)
from common.errors import EcomputeError
from common.logs import setup
from common.signals import upon_end
from tests.support.simulated_host import TEST_HOST

BENCH_NAMESPACE = UUID("5bd4b3c8-2d6b-4a55-8a6b-6a9c0c8d9e10")
NICENESS = 10  # of the agents, which share the cores with the services here alone
STACK_KIB = 512  # of each thread; the usual 8 MiB would be reserved 16,000 times over


def provider_of(prefix: str, number: int) -> UUID:
    """The provider of host *number* of the deployment at *prefix*."""
    return uuid5(BENCH_NAMESPACE, f"{prefix}{number}")


def name_of(number: int) -> str:
    return f"host-{number:04d}"


def config_of(directory: Path, number: int, *, etcd: str, prefix: str, placement: str, resync: float) -> ComputeConfig:
    """The configuration of host *number*; its folders and its libvirt are below *directory*."""
    own = directory / name_of(number)
    own.mkdir(parents=True, exist_ok=True)
    host = own / "host.xml"
    host.write_text(TEST_HOST)
    return ComputeConfig(
        name=name_of(number), uuid=provider_of(prefix, number), etcd=EtcdConfig(endpoints=(etcd,), prefix=prefix),
        placement=PlacementConfig(url=placement), libvirt=LibvirtConfig(uri=f"test://{host}", virt_type="test"),
        inventory=InventoryConfig(vcpu=ResourceConfig(0, 16.0), disk_gb=ResourceConfig(0, 1.0)),
        paths=PathsConfig(own / "state", own / "run"), network=NetworkConfig(reserve_ahead=2, filter=None),
        metadata=MetadataConfig(mode="off"), builder=BuilderConfig(workers=1, resync_every_seconds=resync),
        metrics=MetricsConfig(listen=None),
        log=LogConfig(level="warning", format="text"),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    threading.stack_size(STACK_KIB * 1024)
    setup("warning", "text")
    _spare_the_machine()
    stop = threading.Event()
    upon_end(stop.set)
    threads = [
        threading.Thread(target=_serve, args=(config, stop), name=str(config.name), daemon=True)
        for config in (
            config_of(
                options.directory,
                number,
                etcd=options.etcd,
                prefix=options.prefix,
                placement=options.placement,
                resync=options.resync,
            )
            for number in range(options.first, options.first + options.count)
        )
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join(20)
    return 0


def _spare_the_machine() -> None:
    """Thousands of threads that share one interpreter need not take it from each other every 5 ms.

    And both services come first: hosts have machines of their own, and take no processor time from etcd and Placement.
    """
    sys.setswitchinterval(0.05)
    os.nice(NICENESS)


def _serve(config: ComputeConfig, stop: threading.Event) -> None:
    from ecompute.agent import Agent  # noqa: PLC0415 - here, so that the stack size above holds for all its threads

    try:
        Agent(config, stop).run()
    except EcomputeError as error:
        logging.getLogger(__name__).error("%s ended: %s", config.name, error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agents", description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--placement", required=True)
    parser.add_argument("--resync", type=float, default=60.0, help="seconds between two full looks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = main()
    os._exit(code)
