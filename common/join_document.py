"""What a new host has to be told: where etcd and Placement are and how to be let in, as one line of text, the *token*.

A token is base64url of a JSON object. ``eschedule host token`` makes it of the schedule.yaml in force, ``ecompute join`` makes
compute.yaml of it. Files of certificates and secrets travel by content, since their paths mean nothing on another machine;
``secrets`` names what in a token must not be shown. Knows nothing of where a host keeps its files.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.config import EtcdConfig, PlacementConfig, ScheduleConfig
from common.config_checks import check_endpoints, check_placement_url
from common.config_file import schema_problems
from common.errors import ConfigError
from common.schemas import COMPUTE

SCHEMA = 1
MOST_CHARACTERS = 256 << 10  # of a token; a CA bundle of a whole system is as large
# What may be in a token beside the addresses: the name in the token and the key of the configuration.
ETCD_TEXTS = {"prefix": "prefix", "user": "username"}
ETCD_FILES = {"ca": "ca_file", "certificate": "certificate_file", "key": "key_file", "password": "password_file"}
PLACEMENT_TEXTS = {"url": "url", "project": "project_id", "user": "user_id"}
PLACEMENT_FILES = {"token": "token_file"}
SECRET_FILES = ("key_file", "password_file", "token_file")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+={0,2}")


@dataclass(frozen=True)
class JoinDocument:
    """Where the services are: the sections ``etcd`` and ``placement`` of a configuration without its files.

    Args:
        etcd_files, placement_files: contents, by the configuration's key of each file.
    """

    etcd: Mapping[str, Any]
    placement: Mapping[str, Any]
    etcd_files: Mapping[str, str] = field(default_factory=dict)
    placement_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> list[str]:
        """What in it must not be shown, in words."""
        words = {"key_file": "a client key", "password_file": "a password", "token_file": "a token of Placement"}
        return [words[key] for key in (*self.etcd_files, *self.placement_files) if key in words]

    def to_token(self) -> str:
        etcd = {
            "endpoints": list(self.etcd["endpoints"]),
            **{name: self.etcd[key] for name, key in ETCD_TEXTS.items() if key in self.etcd},
            **{name: self.etcd_files[key] for name, key in ETCD_FILES.items() if key in self.etcd_files},
        }
        placement = {
            **{name: self.placement[key] for name, key in PLACEMENT_TEXTS.items() if key in self.placement},
            **{name: self.placement_files[key] for name, key in PLACEMENT_FILES.items() if key in self.placement_files},
        }
        text = json.dumps({"schema": SCHEMA, "etcd": etcd, "placement": placement}, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


# -- made of a configuration ---------------------------------------------------------------------------------------------


def document_of(config: ScheduleConfig) -> JoinDocument:
    """What a host needs to meet whom *config* speaks to.

    Raises:
        ConfigError: an address is one that only this machine finds something at; a file cannot be read.
    """
    etcd: dict[str, Any] = {"endpoints": list(config.etcd.endpoints), "prefix": config.etcd.prefix}
    etcd |= {"username": config.etcd.username} if config.etcd.username else {}
    placement: dict[str, Any] = {"url": config.placement.url}
    for key in ("project_id", "user_id"):
        if (value := getattr(config.placement, key)) is not None:
            placement[key] = str(value)
    document = JoinDocument(
        etcd,
        placement,
        _contents("etcd", config.etcd, ETCD_FILES.values()),
        _contents("placement", config.placement, PLACEMENT_FILES.values()),
    )
    if found := loopback_address(document):
        where = f" of {config.source}" if config.source else ""
        raise ConfigError(
            f"{found[0]}{where} is {found[1]}, where another host finds itself and not this machine: have that service listen "
            "at an address that the hosts reach, write that address into schedule.yaml, and try again"
        )
    return document


def loopback_address(document: JoinDocument) -> tuple[str, str] | None:
    """The key and the address of a service that only its own machine finds; None where all can be found from elsewhere."""
    addresses = [(f"etcd.endpoints[{n}]", address) for n, address in enumerate(document.etcd["endpoints"])]
    for key, address in (*addresses, ("placement.url", str(document.placement["url"]))):
        if _is_of_its_machine_only(urlsplit(address).hostname or ""):
            return key, address
    return None


def _is_of_its_machine_only(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", "localhost.localdomain"))
    return ip.is_loopback or ip.is_unspecified


def _contents(name: str, section: EtcdConfig | PlacementConfig, keys: Iterable[str]) -> dict[str, str]:
    """What is in the files that *section* names."""
    contents = {}
    for key in keys:
        path: Path | None = getattr(section, key)
        if path is None:
            continue
        try:
            contents[key] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"{name}.{key} is {path}, which cannot be read: {why}") from None
    return contents


# -- made of a token -----------------------------------------------------------------------------------------------------


def document_in(token: str) -> JoinDocument:
    """What *token* says.

    Raises:
        ConfigError: it is damaged, of a newer version, or names addresses that no host can use.
    """
    value = _decoded("".join(token.split()))
    schema = value.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise ConfigError(
            f"the token is of schema {schema}, made by a newer eschedule: install that version on this host first"
        )
    if type(schema) is not int or schema != SCHEMA:
        raise _damaged("it has no schema that this version knows")
    etcd, placement = _section(value, "etcd"), _section(value, "placement")
    document = JoinDocument(
        {"endpoints": etcd.get("endpoints"), **_named(etcd, ETCD_TEXTS)}, _named(placement, PLACEMENT_TEXTS),
        _named(etcd, ETCD_FILES), _named(placement, PLACEMENT_FILES),
    )  # fmt: skip
    check_document(document)
    if found := loopback_address(document):
        raise ConfigError(
            f"the token says {found[0]} is {found[1]}, which would be this machine itself: make it anew (eschedule host token) "
            "where schedule.yaml has the address that hosts reach; on the services' own machine name them: ecompute join "
            "http://ETCD:2379 --placement http://PLACEMENT:8778"
        )
    return document


def check_document(document: JoinDocument) -> None:
    """See that a configuration can be made of *document*.

    Raises:
        ConfigError: one line for each fault.
    """
    sections = {"etcd": dict(document.etcd), "placement": dict(document.placement)}
    problems = [problem.text for problem in schema_problems(sections, COMPUTE)]
    if not problems:
        flat = {"etcd.endpoints": document.etcd["endpoints"], "placement.url": document.placement.get("url", "")}
        problems = [problem.text for check in (check_endpoints, check_placement_url) for problem in check(flat)]
    if ("username" in document.etcd) != ("password_file" in document.etcd_files):
        problems.append("a user of etcd needs a password, and a password a user")
    if ("certificate_file" in document.etcd_files) != ("key_file" in document.etcd_files):
        problems.append("a client certificate needs its key, and a key its certificate")
    if problems:
        raise ConfigError("\n".join(f"what to join: {problem}" for problem in problems))


def _decoded(text: str) -> dict[str, Any]:
    if len(text) > MOST_CHARACTERS:
        raise _damaged(f"it is longer than {MOST_CHARACTERS} characters")
    if not _TOKEN.fullmatch(text):
        raise _damaged("it is empty" if not text else "it has characters that no token has")
    text = text.rstrip("=")
    try:
        value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise _damaged("it cannot be decoded") from None
    if not isinstance(value, dict):
        raise _damaged("it does not hold what a token holds")
    return value


def _section(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = value.get(name)
    if not isinstance(section, dict):
        raise _damaged(f"it says nothing of {name}")
    return section


def _named(section: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Those of *names* that *section* has, by the configuration's keys. Names of newer versions are passed over."""
    found = {key: section[name] for name, key in names.items() if section.get(name) is not None}
    if any(not isinstance(text, str) or not text or "\0" in text for text in found.values()):
        raise _damaged("a value in it is no text")
    return found


def _damaged(why: str) -> ConfigError:
    return ConfigError(f"the token is damaged: {why}; copy the whole line that eschedule host token prints, or make it anew")
