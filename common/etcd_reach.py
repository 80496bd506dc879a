"""Whether an endpoint of etcd can be reached at all: asked more cheaply than gRPC does, and answered in clearer words.

Used by ``common/etcd_store.py`` before it makes a channel, which costs a hundred times what a refused connection does.
"""

from __future__ import annotations

import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from common.config import EtcdConfig
from common.errors import StoreRefused
from common.etcd_rules import Endpoint, Fault


def knock(endpoint: Endpoint, timeout_seconds: float) -> None:
    """Connect to *endpoint* and hang up, where it is an IP address; a name is left to gRPC, whose resolver has a bound.

    Raises:
        Fault: nothing listens there, or it is too far away; in gRPC's words, which the rules know.
    """
    host = endpoint.host.strip("[]")
    try:
        ip_address(host)
    except ValueError:
        return
    try:
        socket.create_connection((host, endpoint.port), timeout_seconds).close()
    except OSError as error:
        why = f"failed to connect to all addresses; {endpoint.host}:{endpoint.port}: {error}"
        raise Fault("UNAVAILABLE", why, endpoint) from error


def certificates_of(endpoint: Endpoint, config: EtcdConfig) -> dict[str, Path | str | None]:
    """What the library's client is to be given for *endpoint*; read here once, as gRPC would not say what is wrong.

    Raises:
        StoreRefused: they cannot be used.
    """
    if not endpoint.is_secure:
        return {}
    # Without a CA the library would fall back to plaintext, silently.
    ca_file = config.ca_file or ssl.get_default_verify_paths().cafile
    if ca_file is None:
        raise StoreRefused(f"etcd.ca_file: {endpoint.url} needs one, this system has no default", may_have_happened=False)
    _check(endpoint, config, str(ca_file))
    return {"ca_cert": ca_file, "cert_cert": config.certificate_file, "cert_key": config.key_file}


def _check(endpoint: Endpoint, config: EtcdConfig, ca_file: str) -> None:
    """Read the files once as Python's ssl does: gRPC would say nothing but that there is no connection."""
    what = f"etcd.ca_file {ca_file}"
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if config.certificate_file or config.key_file:
            what = f"etcd.certificate_file {config.certificate_file} with etcd.key_file {config.key_file}"
            if not (config.certificate_file and config.key_file):
                raise ValueError("each needs the other")
            context.load_cert_chain(config.certificate_file, config.key_file, password="")  # never ask a terminal
    except (OSError, ValueError) as error:
        raise StoreRefused(f"etcd {endpoint.url}: cannot use {what}: {error}", may_have_happened=False) from error
