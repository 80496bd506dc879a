"""md_server's pure parts: names of keys, well-formed paths, the tree's listing rules, rate of warnings, what gets logged."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import logging
from pathlib import Path
from uuid import UUID

import pytest

from common.metadata import MetadataDocument, MetadataStore
from common.model import Address
from common.renderings import ec2, openstack
from common.renderings.guest import Guest, Host, key_name
from common.renderings.tree import Directory, Leaf, find, text
from md_server.app import MOST_PATH_CHARACTERS, Application, is_well_formed, resource
from md_server.limiter import Limiter
from md_server.lookup import Lookup

DOCUMENT = MetadataDocument(UUID(int=1), "vm", addresses=(Address("default", "52:54:0a:00:00:05", "10.0.0.5"),))
HOST = Host("h1", "x86_64")


def guest_with(**fields: object) -> Guest:
    return Guest(dataclasses.replace(DOCUMENT, **fields), HOST)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("ssh-ed25519 AAAA alice@laptop", "alice@laptop"),
        ("ssh-ed25519 AAAA Alice's  key / 2", "Alice-s-key-2"),
        ("ssh-ed25519 AAAA ../../etc", "etc"),
        ("ssh-ed25519 AAAA 0=x\ty", "0-x-y"),
        ("ssh-ed25519 AAAA", ""),
        ("ssh-ed25519 AAAA ☃", ""),
        ("", ""),
        ("ssh-ed25519 AAAA " + "a" * 200, "a" * 64),
    ],
)
def test_a_key_is_named_by_its_comment_as_far_as_a_path_can_hold_it(line, name):
    assert key_name(line) == name


def test_no_key_is_lost_to_another_of_the_same_name():
    lines = ("t A x", "t B x", "t C x-1", "t D", "t E x", "t F key-3")
    keys = guest_with(keys=lines).keys
    assert [k.line for k in keys] == list(lines)
    assert len({k.name for k in keys}) == len(lines)


@pytest.mark.parametrize(
    "path", ["/", "/latest", "/latest/", "/latest/meta-data/public-keys/0/openssh-key", "/a.b/c..d/52:54:00", "/x=y@z+~_-"]
)
def test_paths_that_can_name_something(path):
    assert is_well_formed(path, path)


@pytest.mark.parametrize(
    "path",
    ["", "x", "//", "/a//b", "/.", "/..", "/a/../b", "/a/./b", "/a/..", "/%2e", "/a b", "/a\\b", "/a\x00", "/a\n", "/é", "/a;b", "/a?b", "*",
     "http://x/", "/" + "a" * MOST_PATH_CHARACTERS],
)  # fmt: skip
def test_paths_that_can_name_nothing(path):
    assert not is_well_formed(path, "")


@pytest.mark.parametrize("raw", ["/latest%2Fmeta-data", "/latest%2fmeta-data", "//latest/meta-data", "/latest/meta-data?x=%2F"])
def test_a_slash_that_was_escaped_or_stripped_is_none(raw):
    assert not is_well_formed("/latest/meta-data", raw)


def test_the_longest_path_is_judged_at_once():
    assert not is_well_formed("/" + "a/" * 4000, "")
    assert not is_well_formed("/" + "a" * 200 + "!", "")


def test_a_directory_lists_its_children_and_a_leaf_has_none():
    root = Directory({"b": text("B"), "a": Directory({"c": text("C")}), "k": Directory({"0": text("K")}, listing=["0=name"])})
    assert find(root, [], has_slash=True) == text("a/\nb\nk/")
    assert find(root, ["a"], has_slash=False) == text("c")
    assert find(root, ["k"], has_slash=True) == text("0=name")
    assert find(root, ["k", "0"], has_slash=False) == text("K")
    assert find(root, ["k", "0=name"], has_slash=False) is None
    assert find(root, ["b"], has_slash=False) == Leaf(b"B")
    assert find(root, ["b"], has_slash=True) is None
    assert find(root, ["b", "x"], has_slash=False) is None


def paths_of(directory: Directory, prefix: str) -> list[str]:
    found = []
    for name, child in directory.children.items():
        found += paths_of(child, f"{prefix}{name}/") if isinstance(child, Directory) else [f"{prefix}{name}"]
    return found


def test_every_leaf_of_every_version_can_be_asked_for():
    guest = guest_with(keys=("t A x", "t B"), user_data_base64="eA==")
    trees = {f"/{v}/": ec2.tree(guest) for v in ec2.VERSIONS}
    trees |= {f"/openstack/{v}/": openstack.tree(guest, v, bytes) for v in openstack.VERSIONS}
    for prefix, tree in trees.items():
        for path in paths_of(tree, prefix):
            assert is_well_formed(path, path), path
            assert resource(guest, path, bytes) is not None, path


def test_a_seed_is_in_each_answer_another_one_and_in_its_own_place_only():
    tricky = '"random_seed": ""'
    counter = itertools.count()
    guest = guest_with(name=tricky, keys=("t A random_seed", f"t {tricky} x"))
    answers = [
        resource(guest, "/openstack/latest/meta_data.json", lambda size: bytes([next(counter)]) * size) for _ in range(2)
    ]
    found = [json.loads(answer.content) for answer in answers if answer]
    assert [base64.b64decode(each.pop("random_seed")) for each in found] == [bytes(512), b"\1" * 512]
    assert found[0] == found[1]
    assert (found[0]["name"], found[0]["public_keys"]) == (tricky, {"random_seed": "t A random_seed", "x": f"t {tricky} x"})


def test_versions_are_in_order_with_latest_last_as_what_came_when_is_told_by_order():
    for versions in (ec2.VERSIONS, openstack.VERSIONS):
        assert list(versions) == sorted(versions)
        assert versions[-1] == "latest"


def test_a_guest_without_any_nic_has_the_rest():
    guest = guest_with(addresses=())
    assert resource(guest, "/latest/meta-data/mac", bytes) is None
    assert resource(guest, "/latest/meta-data/instance-id", bytes) == text(str(UUID(int=1)))
    assert resource(guest, "/openstack/latest/network_data.json", bytes) is not None


def test_a_nic_whose_address_is_not_known_is_listed_without_one():
    guest = guest_with(addresses=(Address("lan", "52:54:00:00:00:01", ""), *DOCUMENT.addresses))
    macs = "/latest/meta-data/network/interfaces/macs/52:54:00:00:00:01/"
    assert resource(guest, macs, bytes) == text("device-number\nlocal-hostname\nmac")
    assert resource(guest, "/latest/meta-data/local-ipv4", bytes) is None


def test_a_limiter_lets_each_key_pass_once_in_its_time_and_never_too_many():
    now = 0.0
    limiter = Limiter(60, 2, lambda: now)
    assert [limiter.may_pass(k) for k in ("a", "a", "b", "c")] == [True, False, True, False]
    now = 60.0
    assert [limiter.may_pass(k) for k in ("c", "a", "b")] == [True, True, False]


def asked(application: Application, source: str, path: str = "/latest/user-data", **environ: str) -> tuple[str, bytes]:
    statuses: list[str] = []
    body = b"".join(
        application(
            {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REMOTE_ADDR": source, **environ},
            lambda status, headers: statuses.append(status),
        )
    )
    return statuses[0], body


@pytest.fixture
def application(tmp_path: Path) -> Application:
    store = MetadataStore(tmp_path)
    store.write(dataclasses.replace(DOCUMENT, user_data_base64="c2VjcmV0"))
    return Application(Lookup(store, HOST), own_address="169.254.169.254", clock=lambda: 0.0)


def test_a_stranger_is_told_once_and_this_host_itself_never(application, caplog):
    for source in ("10.0.0.9", "10.0.0.9", "169.254.169.254"):
        assert asked(application, source) == ("404 Not Found", b"404 Not Found\n")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_user_data_is_never_logged(application, caplog):
    caplog.set_level(logging.DEBUG)
    assert asked(application, "10.0.0.5") == ("200 OK", b"secret")
    assert caplog.records
    assert "secret" not in str([vars(record) for record in caplog.records])


def test_a_document_with_user_data_that_is_none_is_unavailable(tmp_path, caplog):
    store = MetadataStore(tmp_path)
    store.write(dataclasses.replace(DOCUMENT, user_data_base64="%"))
    application = Application(Lookup(store, HOST))
    assert asked(application, "10.0.0.5")[0] == "503 Service Unavailable"
    assert asked(application, "10.0.0.5", "/openstack/latest/user_data")[0] == "503 Service Unavailable"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("environ", [{}, {"REMOTE_ADDR": ""}, {"REMOTE_ADDR": "x"}])
def test_a_request_from_nowhere_is_a_stranger_s(application, environ):
    statuses: list[str] = []
    application({"REQUEST_METHOD": "GET", "PATH_INFO": "/", **environ}, lambda status, headers: statuses.append(status))
    assert statuses == ["404 Not Found"]
