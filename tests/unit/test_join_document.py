"""The token of a new host: what is in it, what is refused, and that no secret of it gets onto a command line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from common.config import EtcdConfig, PlacementConfig, ScheduleConfig
from common.errors import ConfigError
from common.join_document import JoinDocument, document_in, document_of
from ecompute.join import _wanted

ETCD = {"endpoints": ["https://10.0.0.1:2379", "https://etcd-2.example:2379"], "prefix": "/other/"}
PLACEMENT = {"url": "http://10.0.0.1:8778/placement"}


def token_of(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def simple(**changes: Any) -> dict[str, Any]:
    whole = {"schema": 1, "etcd": {"endpoints": ["http://10.0.0.1:2379"]}, "placement": {"url": "http://10.0.0.1:8778"}}
    return {**whole, **changes}


def test_what_goes_into_a_token_comes_out_of_it(tmp_path: Path) -> None:
    files = {}
    for name in ("ca", "certificate", "key", "password", "token"):
        files[name] = tmp_path / name
        files[name].write_text(f"the {name} ä\n")
    project = uuid4()
    config = ScheduleConfig(
        etcd=EtcdConfig(
            endpoints=tuple(ETCD["endpoints"]), prefix="/other/", ca_file=files["ca"], certificate_file=files["certificate"],
            key_file=files["key"], username="hosts", password_file=files["password"],
        ),
        placement=PlacementConfig(url=PLACEMENT["url"], token_file=files["token"], project_id=project),
    )  # fmt: skip
    token = document_of(config).to_token()
    assert token.isascii() and len(token.split()) == 1
    found = document_in(f"  {token[:50]}\n{token[50:]}\n")  # as a terminal wraps it
    assert found == JoinDocument(
        {**ETCD, "username": "hosts"}, {**PLACEMENT, "project_id": str(project)},
        {f"{name}_file": f"the {name} ä\n" for name in ("ca", "certificate", "key", "password")}, {"token_file": "the token ä\n"},
    )  # fmt: skip
    assert found.secrets == ["a client key", "a password", "a token of Placement"]


@pytest.mark.parametrize(
    ("etcd", "placement", "key"),
    [
        ("http://127.0.0.1:2379", "http://10.0.0.1:8778", "etcd.endpoints[0]"),
        ("http://10.0.0.1:2379", "http://localhost:8778", "placement.url"),
        ("http://10.0.0.1:2379", "http://[::1]:8778", "placement.url"),
        ("http://0.0.0.0:2379", "http://10.0.0.1:8778", "etcd.endpoints[0]"),
    ],
)
def test_an_address_that_other_hosts_do_not_find_is_refused_with_advice(etcd: str, placement: str, key: str) -> None:
    config = ScheduleConfig(etcd=EtcdConfig(endpoints=(etcd,)), placement=PlacementConfig(url=placement))
    with pytest.raises(ConfigError, match=r"schedule\.yaml") as refused:
        document_of(config)
    assert key in str(refused.value)
    value = simple(etcd={"endpoints": [etcd]}, placement={"url": placement})
    with pytest.raises(ConfigError, match="this machine itself"):
        document_in(token_of(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("not a token!", "characters that no token has"),
        (token_of(simple())[:-9], "cannot be decoded"),
        (token_of([1]), "does not hold"),
        (token_of({}), "no schema"),
        (token_of(simple(schema=True)), "no schema"),
        (token_of(simple(schema=2)), "newer eschedule"),
        (token_of(simple(etcd=None)), "says nothing of etcd"),
        (token_of(simple(etcd={})), "etcd.endpoints"),
        (token_of(simple(etcd={"endpoints": "http://10.0.0.1:2379"})), "etcd.endpoints"),
        (token_of(simple(etcd={"endpoints": ["http://10.0.0.1"]})), "PORT"),
        (token_of(simple(etcd={"endpoints": ["http://u:geheim@10.0.0.1:2379"]})), "user name or password"),
        (token_of(simple(etcd={"endpoints": ["http://10.0.0.1:2379"], "password": "geheim"})), "needs a password"),
        (token_of(simple(etcd={"endpoints": ["http://10.0.0.1:2379"], "ca": 7})), "no text"),
        (token_of(simple(placement={"url": "10.0.0.1"})), "placement.url"),
        ("A" * (257 << 10), "longer than"),
        (base64.urlsafe_b64encode(b"[" * 60000).decode(), "cannot be decoded"),
    ],
)
def test_a_token_that_is_none_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        document_in(text)
    assert "\n" not in str(refused.value) and "geheim" not in str(refused.value)


def test_fields_of_a_later_version_are_passed_over() -> None:
    value = simple(more=1)
    value["etcd"]["colour"] = "blue"
    assert document_in(token_of(value)).etcd == {"endpoints": ["http://10.0.0.1:2379"]}


def options(where: str | None, **named: Any) -> Any:
    return SimpleNamespace(**{"where": where, "placement": None, "ca": None, **named})


def test_a_secret_is_taken_from_a_file_and_not_from_the_command_line(tmp_path: Path) -> None:
    token = token_of(simple(etcd={"endpoints": ["http://10.0.0.1:2379"], "user": "hosts", "password": "geheim"}))
    with pytest.raises(ConfigError, match="ecompute join -"):
        _wanted(options(token))
    (tmp_path / "token").write_text(token + "\n")
    found = _wanted(options(str(tmp_path / "token")))
    assert found is not None and found.etcd_files == {"password_file": "geheim"}
    assert _wanted(options(token_of(simple()))) is not None


def test_a_token_may_be_longer_than_the_name_of_a_file() -> None:
    """One with a CA always is, and most with three endpoints are."""
    found = _wanted(options(token_of(simple(etcd={"endpoints": ["https://10.0.0.1:2379"], "ca": "PEM" * 2000}))))
    assert found is not None and found.etcd_files == {"ca_file": "PEM" * 2000}


def test_addresses_may_be_named_instead_also_of_loopback(tmp_path: Path) -> None:
    found = _wanted(options("http://127.0.0.1:2379,http://127.0.0.1:2380", placement="http://127.0.0.1:8778"))
    assert found is not None and found.etcd["endpoints"] == ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]
    (tmp_path / "ca").write_text("PEM")
    found = _wanted(options("https://10.0.0.1:2379", placement="http://10.0.0.1:8778", ca=str(tmp_path / "ca")))
    assert found is not None and found.etcd_files == {"ca_file": "PEM"}
    assert _wanted(options(None)) is None
    for bad in (
        options("http://10.0.0.1:2379"), options("http://10.0.0.1", placement="http://10.0.0.1:8778"), options(None, ca="x"),
        options("/there/is/nothing"), options("http://10.0.0.1:2379,https://10.0.0.1:2380", placement="http://10.0.0.1:8778"),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            _wanted(bad)
