"""From the options of ``image add`` to a checked ``ImageRecord``. Pure, but for the list of checksums that *fetch* reads."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from common.errors import ConfigError
from common.image_records import ImageRecord
from common.text import quoted
from common.validate import parse_checksum, parse_count, parse_image, parse_image_name
from common.validate_images import parse_property, parse_user
from common.validate_query import MOST_OF_CLASS
from eschedule.sums_file import checksum_in

_HTTP = ("http://", "https://")


def record_from(
    options: argparse.Namespace, *, created_at: str, created_by: str, fetch: Callable[[str], str]
) -> ImageRecord:  # fmt: skip
    """The image that *options* describe.

    Args:
        fetch: reads the list of checksums at an address; asked last, and only where an address is given.

    Raises:
        ConfigError: something in it is wrong; one line.
        EcomputeError: as *fetch*.
    """
    name, url = parse_image_name(options.name), parse_image(options.url).url
    record = ImageRecord(
        name=name,
        url=url,
        checksum="",
        checksum_url="" if options.checksum_url is None else _sums_url(options.checksum_url, url),
        created_at=created_at,
        created_by=created_by,
        **requirements(options),
    )
    return _with_checksum(record, options, fetch)


def requirements(options: argparse.Namespace) -> dict[str, Any]:
    """What *options* say of an image beside where it is, by the fields of ``ImageRecord``; raises as ``record_from``."""
    return {
        "min_disk_gib": _amount(options.min_disk, "--min-disk", "DISK_GB"),
        "min_memory_mib": _amount(options.min_memory, "--min-memory", "MEMORY_MB"),
        "user": "" if options.user is None else parse_user(options.user),
        "properties": _properties(options.property or ()),
    }


def _with_checksum(record: ImageRecord, options: argparse.Namespace, fetch: Callable[[str], str]) -> ImageRecord:
    if record.checksum_url:
        file_name = _file_name(record.url)
        if not file_name:
            raise ConfigError(f"the URL {quoted(record.url)} ends in no file name to look for; give --sha256 HEX")
        checksum = checksum_in(fetch(record.checksum_url), file_name, record.checksum_url.partition("?")[0])
    elif options.sha256 is not None:
        checksum = _given("sha256", options.sha256)
    else:
        checksum = _given("sha512", options.sha512)
    return dataclasses.replace(record, checksum=checksum)


def _given(algorithm: str, text: str) -> str:
    try:
        return parse_checksum(f"{algorithm}:{text.removeprefix(f'{algorithm}:')}")
    except ConfigError as error:
        raise ConfigError(f"--{algorithm}: {error}") from None


def _sums_url(text: str, image_url: str) -> str:
    """Where the list is; one without a scheme is beside the image.

    Raises:
        ConfigError: it is no address of http.
    """
    beside = image_url.lower().startswith(_HTTP) and "://" not in text and not text.startswith("/") and text
    url = urljoin(image_url, text) if beside else text
    if not url.lower().startswith(_HTTP):
        raise ConfigError(
            f"--checksum-url {quoted(text)} is neither an http:// nor an https:// URL, nor the name of a file beside such an "
            "image; give --sha256 HEX or --sha512 HEX, which sha256sum and sha512sum print"
        )
    try:
        return parse_image(url).url
    except ConfigError as error:
        raise ConfigError(f"--checksum-url: {error}") from None


def _file_name(url: str) -> str:
    path = unquote(urlsplit(url).path) if "://" in url else url
    return path.rpartition("/")[2]


def _amount(text: str | None, option: str, resource_class: str) -> int:
    return 0 if text is None else parse_count(text, option, 0, MOST_OF_CLASS[resource_class])


def _properties(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, value = parse_property(text)
        if found.setdefault(name, value) != value:
            raise ConfigError(f"--property {name} is given as {found[name]} and as {value}; give it once")
    return found
