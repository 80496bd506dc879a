"""The checks of a configuration that no schema can make: between two keys, inside a URL, and of the files that are named.

Each check takes the effective values by their dotted key (``{"etcd.deadline_seconds": 5.0, …}``, defaults included) and
yields the faults that it sees. Only the files' modes and whether they can be read is asked of the system; no secret is
read. Called by ``common/config.py``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from common.config_file import Problem
from common.errors import ConfigError
from common.text import quoted

VENDOR_DATA_MOST_BYTES = 65536  # as of user data: it is in each guest's document once more

Values = Mapping[str, Any]
Check = Callable[[Values], Iterator[Problem]]


def _problem(text: str, *keys: str) -> Problem:
    return Problem(tuple(tuple(key.split(".")) for key in keys), text)


# -- etcd ----------------------------------------------------------------------------------------------------------------


def check_lease(values: Values) -> Iterator[Problem]:
    """A missed heartbeat must leave time for two more tries before the lease ends."""
    ttl, every = values["etcd.lease_ttl_seconds"], values["etcd.heartbeat_every_seconds"]
    least = every + 2 * values["etcd.deadline_seconds"]
    if ttl < least:
        yield _problem(
            f"etcd.lease_ttl_seconds is {ttl}, needs >= {least:g} (heartbeat_every_seconds + 2 * deadline_seconds)",
            "etcd.lease_ttl_seconds", "etcd.heartbeat_every_seconds", "etcd.deadline_seconds",
        )  # fmt: skip


def check_endpoints(values: Values) -> Iterator[Problem]:
    endpoints: Sequence[str] = values["etcd.endpoints"]
    for index, endpoint in enumerate(endpoints):
        fault = _url_fault(endpoint, path_allowed=False)
        if fault:
            yield _problem(f"etcd.endpoints[{index}] {fault}", "etcd.endpoints")
    if len({urlsplit(e).scheme for e in endpoints if not _url_fault(e, path_allowed=False)}) > 1:
        yield _problem("etcd.endpoints has both http:// and https:// in it, needs all of one kind", "etcd.endpoints")


def check_placement_url(values: Values) -> Iterator[Problem]:
    fault = _url_fault(values["placement.url"], path_allowed=True)
    if fault:
        yield _problem(f"placement.url {fault}", "placement.url")


def _url_fault(text: str, *, path_allowed: bool) -> str | None:
    """What is wrong with the address of a server; it is not repeated where it holds a password."""
    example = "http://127.0.0.1:8778" if path_allowed else "http://127.0.0.1:2379"
    try:
        url = urlsplit(text)
        port, host = url.port, url.hostname
    except ValueError:
        shown = "" if "@" in text else f"{quoted(text)}, which is "
        return f"is {shown}no URL; needs one like {example}"
    if url.username is not None or url.password is not None:
        place = "token_file" if path_allowed else "username and password_file"
        return f"holds a user name or password, which belongs into {place}"
    if url.scheme not in ("http", "https"):
        return f"is {quoted(text)}, needs http:// or https:// before the host, such as {example}"
    has_form = bool(host) and (path_allowed or (port is not None and url.path in ("", "/")))
    if not has_form or url.query or url.fragment or " " in text:
        return f"is {quoted(text)}, needs {_url_form(url, path_allowed)}, such as {example}"
    return None


def _url_form(url: SplitResult, path_allowed: bool) -> str:
    return f"{url.scheme}://HOST:PORT" + (" with or without a path" if path_allowed else " and no path")


def check_tls(values: Values) -> Iterator[Problem]:
    secure = any(e.startswith("https://") for e in values["etcd.endpoints"])
    ca, certificate, key = (values[f"etcd.{k}"] for k in ("ca_file", "certificate_file", "key_file"))
    if secure and ca is None:
        yield _problem(
            "etcd.ca_file is not set, needs the CA of the https:// endpoints "
            "(the system's own are in /etc/ssl/certs/ca-certificates.crt)",
            "etcd.ca_file", "etcd.endpoints",
        )  # fmt: skip
    if (certificate is None) != (key is None):
        there, absent = ("key_file", "certificate_file") if certificate is None else ("certificate_file", "key_file")
        yield _problem(f"etcd.{there} is set without {absent}, needs both or none", "etcd.certificate_file", "etcd.key_file")
    for name, value in (("ca_file", ca), ("certificate_file", certificate), ("key_file", key)):
        if value is not None and not secure:
            yield _problem(
                f"etcd.{name} is set, but the endpoints are http:// and would be used unencrypted; write https://",
                f"etcd.{name}", "etcd.endpoints",
            )  # fmt: skip


def check_login(values: Values) -> Iterator[Problem]:
    username, password_file = values["etcd.username"], values["etcd.password_file"]
    if (username is None) != (password_file is None):
        there, absent = ("password_file", "username") if username is None else ("username", "password_file")
        yield _problem(f"etcd.{there} is set without {absent}, needs both or none", "etcd.username", "etcd.password_file")


def check_publishing(values: Values) -> Iterator[Problem]:
    keys = ("images.publish_directory", "images.publish_url")
    directory, url = (values[key] for key in keys)
    if (directory is None) != (url is None):
        there, absent = ("publish_url", "publish_directory") if directory is None else ("publish_directory", "publish_url")
        yield _problem(f"images.{there} is set without {absent}, needs both or none", *keys)


# -- files ---------------------------------------------------------------------------------------------------------------


def check_files(values: Values) -> Iterator[Problem]:
    """Each file that is named can be read, and those with secrets not by everyone."""
    for key in ("etcd.ca_file", "etcd.certificate_file", "etcd.key_file", "etcd.password_file", "placement.token_file"):
        if values[key] is not None:
            fault = _file_fault(values[key], is_secret=key.endswith(("key_file", "password_file", "token_file")))
            if fault:
                yield _problem(f"{key} is {values[key]}, {fault}", key)


def check_vendor_data_file(values: Values) -> Iterator[Problem]:
    path = values["metadata.vendor_data_file"]
    if path is not None:
        fault = _file_fault(path, is_secret=False)
        if fault is None and (too_large := vendor_data_size_fault(path.stat().st_size)):
            fault = f"which {too_large}"
        if fault:
            yield _problem(f"metadata.vendor_data_file is {path}, {fault}", "metadata.vendor_data_file")


def vendor_data_size_fault(size_bytes: int) -> str | None:
    if size_bytes <= VENDOR_DATA_MOST_BYTES:
        return None
    return (
        f"has more than {VENDOR_DATA_MOST_BYTES} bytes (64 KiB); every guest gets its own copy: have the guests fetch the rest "
        "(#include)"
    )


def check_key_files(values: Values) -> Iterator[Problem]:
    for index, path in enumerate(values["defaults.key_files"]):
        fault = _file_fault(path, is_secret=False)
        if fault:
            yield _problem(f"defaults.key_files[{index}] is {path}, {fault}", "defaults.key_files")


def _file_fault(path: Path, *, is_secret: bool) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return f"which cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "which is no file"
    if not os.access(path, os.R_OK):
        return "which this user may not read"
    if is_secret and status.st_mode & 0o007:
        return f"which holds a secret and is open to everyone (mode {stat.S_IMODE(status.st_mode):04o}); chmod o-rwx {path}"
    if status.st_size == 0:
        return "which is empty"
    return None


# -- the rest ------------------------------------------------------------------------------------------------------------


def check_placement_deadline(values: Values) -> Iterator[Problem]:
    timeout, deadline = values["placement.timeout_seconds"], values["placement.deadline_seconds"]
    if deadline < timeout:
        yield _problem(
            f"placement.deadline_seconds is {deadline:g}, needs >= {timeout:g} (timeout_seconds: one request of the call)",
            "placement.deadline_seconds", "placement.timeout_seconds",
        )  # fmt: skip


def check_virt_type(values: Values) -> Iterator[Problem]:
    """libvirt's test driver runs guests of its own kind only, and no other driver runs those."""
    uri, virt_type = values["libvirt.uri"], values["libvirt.virt_type"]
    if virt_type == "test" and not uri.startswith("test:"):
        yield _problem(
            f"libvirt.virt_type is test, which only works with a test:/// URI, and libvirt.uri is {quoted(uri)}; "
            "needs one of auto, kvm, qemu",
            "libvirt.virt_type", "libvirt.uri",
        )  # fmt: skip
    if virt_type != "test" and uri.startswith("test:"):
        yield _problem(
            f"libvirt.virt_type is {virt_type}, needs test with libvirt.uri {quoted(uri)}", "libvirt.virt_type", "libvirt.uri"
        )


def check_metadata_address(values: Values) -> Iterator[Problem]:
    address = values["metadata.address"]
    try:
        IPv4Address(address)
    except ValueError:
        yield _problem(f"metadata.address is {quoted(address)}, needs an IPv4 address", "metadata.address")


def check_paths(values: Values) -> Iterator[Problem]:
    state, run = (os.path.normpath(values[f"paths.{k}"]) for k in ("state_dir", "run_dir"))
    if state == run:
        yield _problem(
            f"paths.run_dir is {run}, the same as state_dir; needs another, which a reboot may empty",
            "paths.run_dir", "paths.state_dir",
        )  # fmt: skip


def check_default_image(values: Values) -> Iterator[Problem]:
    if values["defaults.image"] is not None:
        from common.validate import is_image_name, parse_image  # noqa: PLC0415 - most commands need nothing else of it

        try:
            if not is_image_name(values["defaults.image"]):
                parse_image(values["defaults.image"])
        except ConfigError as error:
            yield _problem(f"defaults.image: {error}", "defaults.image")


def check_default_allow(values: Values) -> Iterator[Problem]:
    if values["defaults.allow"]:
        from common.validate_access import parse_allow  # noqa: PLC0415 - only where somebody has written rules

        try:
            parse_allow(values["defaults.allow"], "defaults.allow")
        except ConfigError as error:
            yield _problem(str(error), "defaults.allow")


def check_prefetch(values: Values) -> Iterator[Problem]:
    if values["images.prefetch"]:
        from common.validate import is_image_name, parse_image  # noqa: PLC0415 - only where somebody has a list

        for index, text in enumerate(values["images.prefetch"]):
            try:
                if not is_image_name(text):
                    parse_image(text)
            except ConfigError as error:
                yield _problem(f"images.prefetch[{index}]: {error}", "images.prefetch")


def check_disk(values: Values) -> Iterator[Problem]:
    """What QEMU refuses to put together, and what undoes itself."""
    mode, preallocation, cache, aio, discard, zeroes = (
        values[f"disk.{key}"] for key in ("mode", "preallocation", "cache", "aio", "discard", "detect_zeroes")
    )
    if mode == "overlay" and preallocation != "off":
        yield _problem(
            f"disk.preallocation is {preallocation}, and an overlay has nothing to take ahead; needs disk.mode: copy or raw",
            "disk.preallocation", "disk.mode",
        )  # fmt: skip
    if mode == "raw" and preallocation == "metadata":
        yield _problem(
            "disk.preallocation is metadata, which raw disks do not have; needs off, falloc or full",
            "disk.preallocation", "disk.mode",
        )  # fmt: skip
    if preallocation in ("falloc", "full") and discard == "unmap":
        yield _problem(
            f"disk.discard is unmap, which gives back what disk.preallocation: {preallocation} has taken; needs ignore",
            "disk.discard", "disk.preallocation",
        )  # fmt: skip
    if aio == "native" and cache not in ("none", "directsync"):
        yield _problem(
            f"disk.aio is native, which works around the host's cache only, and disk.cache is {cache}; "
            "needs disk.cache: none or directsync",
            "disk.aio", "disk.cache",
        )  # fmt: skip
    if zeroes == "unmap" and discard != "unmap":
        yield _problem(
            f"disk.detect_zeroes is unmap, and disk.discard is {discard}; needs disk.discard: unmap, or detect_zeroes: on",
            "disk.detect_zeroes", "disk.discard",
        )  # fmt: skip


_BOTH: tuple[Check, ...] = (
    check_endpoints, check_tls, check_login, check_files, check_placement_url, check_placement_deadline,
)  # fmt: skip
COMPUTE_CHECKS: tuple[Check, ...] = (
    *_BOTH, check_lease, check_virt_type, check_metadata_address, check_paths, check_vendor_data_file,
    check_prefetch, check_disk, check_publishing,
)  # fmt: skip
# Of files that only ecompute reads, and that may be nobody else's to read: see ``load_compute``.
ECOMPUTE_FILE_CHECKS: tuple[Check, ...] = (check_files, check_vendor_data_file)
SCHEDULE_CHECKS: tuple[Check, ...] = (*_BOTH, check_key_files, check_default_image, check_default_allow)
