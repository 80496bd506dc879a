"""The names that are in etcd, for completion: a few short questions to etcd's JSON gateway, by the standard library alone.

gRPC takes longer to import than somebody who has pressed Tab likes to wait. The gateway is in every etcd that serves clients
(``/v3/kv/range``: https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/). Whatever goes wrong, there are no names.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from common.config import EtcdConfig

SECONDS = 1.0  # for each question; nobody waits longer for a completion
MOST_NAMES = 1000


def keys_below(config: EtcdConfig, prefix: str) -> list[str]:
    """What follows *prefix* in each key that begins with it, at most ``MOST_NAMES``; none where etcd cannot be asked."""
    return [_text(item["key"]).removeprefix(prefix) for item in _range(config, prefix, keys_only=True)]


def fields_below(config: EtcdConfig, prefix: str, field: str) -> list[str]:
    """The text *field* of each JSON value below *prefix*."""
    return [value for value in _values(config, prefix, field) if isinstance(value, str)]


def objects_below(config: EtcdConfig, prefix: str, field: str) -> list[dict[str, str]]:
    """The texts in the object *field* of each JSON value below *prefix*."""
    found = [value for value in _values(config, prefix, field) if isinstance(value, dict)]
    return [{name: text for name, text in value.items() if isinstance(text, str)} for value in found]


def _values(config: EtcdConfig, prefix: str, field: str) -> list[Any]:
    found = []
    for item in _range(config, prefix, keys_only=False):
        try:
            found.append(json.loads(_text(item.get("value", ""))).get(field))
        except (ValueError, AttributeError):
            continue
    return found


def _range(config: EtcdConfig, prefix: str, *, keys_only: bool) -> Sequence[dict[str, str]]:
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)  # prefixes of ours end in a slash
    question = {
        "key": _base64(prefix), "range_end": _base64(end), "limit": MOST_NAMES, "keys_only": keys_only, "serializable": True,
    }  # fmt: skip
    for endpoint in config.endpoints:
        try:
            headers = {"Authorization": _token(config, endpoint)} if config.username else {}
            answer = _ask(config, endpoint, "/v3/kv/range", question, headers)
            return [item for item in answer.get("kvs", ()) if isinstance(item, dict)]
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            continue
    return []


def _token(config: EtcdConfig, endpoint: str) -> str:
    password = config.password_file.read_text(encoding="utf-8").strip() if config.password_file else ""
    return str(_ask(config, endpoint, "/v3/auth/authenticate", {"name": config.username, "password": password}, {})["token"])


def _ask(config: EtcdConfig, endpoint: str, path: str, question: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Raises: OSError, HTTPException, ValueError: it did not answer, or with something else."""
    connection = _connection(config, endpoint)
    try:
        connection.request("POST", path, json.dumps(question), {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        value = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != http.client.OK or not isinstance(value, dict):
        raise ValueError(f"etcd answered {answer.status}")
    return value


def _connection(config: EtcdConfig, endpoint: str) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    host, port = parts.hostname or "", parts.port or 2379
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=SECONDS)
    context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
    if config.certificate_file:
        context.load_cert_chain(config.certificate_file, config.key_file)
    return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="replace")
