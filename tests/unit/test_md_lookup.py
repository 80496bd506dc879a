"""md_server's lookup: what was read is kept only as long as it is for certain what is there, and only as much as may be."""

from __future__ import annotations

import dataclasses
import os
import time
import tracemalloc
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import EcomputeError
from common.metadata import SETTLE_NS, MetadataDocument, MetadataStore
from common.model import Address, IpAddress
from common.nics import AddressSource
from common.renderings import openstack
from common.renderings.guest import Host
from md_server.app import resource
from md_server.lookup import Lookup

ONE, TWO = "10.0.0.1", "10.0.0.2"


class CountingStore(MetadataStore):
    """Counts how often a document is read."""

    reads = 0

    def by_address(self, address: str) -> MetadataDocument | None:
        self.reads += 1
        return super().by_address(address)


def document(number: int, *addresses: str, hostname: str = "a") -> MetadataDocument:
    nics = tuple(Address("default", f"52:54:00:00:00:{number:02x}", address) for address in addresses)
    return MetadataDocument(UUID(int=number), "vm", hostname=hostname, addresses=nics)


def much_later() -> int:
    return time.time_ns() + 10 * SETTLE_NS


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


@pytest.fixture
def lookup(store: CountingStore) -> Lookup:
    return Lookup(store, Host("h1", "x86_64"), now_ns=much_later)


def hostname_at(lookup: Lookup, address: str) -> str | None:
    guest = lookup.guest_at(address)
    return guest and guest.hostname


def test_a_document_that_lies_there_for_long_is_read_once(store, lookup):
    store.write(document(1, ONE))
    assert [hostname_at(lookup, ONE) for _ in range(5)] == ["a"] * 5
    assert hostname_at(lookup, f"::ffff:{ONE}") == "a"
    assert store.reads == 1


def test_a_new_document_is_read_each_time_as_the_next_one_may_look_the_same(store):
    store.write(document(1, ONE))
    lookup = Lookup(store, Host("h1", "x86_64"), now_ns=lambda: time.time_ns() + SETTLE_NS // 2)
    assert [hostname_at(lookup, ONE) for _ in range(3)] == ["a"] * 3
    assert store.reads == 3


def test_a_document_is_new_at_once_and_gone_at_once(store, lookup, tmp_path):
    store.write(document(1, ONE))
    assert hostname_at(lookup, ONE) == "a"
    with (tmp_path / f"{UUID(int=1)}.json").open():  # whose number no other file can get meanwhile
        store.write(document(1, ONE, hostname="b"))
        assert hostname_at(lookup, ONE) == "b"
        store.remove(UUID(int=1))
        assert hostname_at(lookup, ONE) is None


def test_an_address_goes_over_to_another_guest_at_once(store, lookup):
    store.write(document(1, ONE))
    store.write(document(2, TWO, hostname="b"))
    assert (hostname_at(lookup, ONE), hostname_at(lookup, TWO)) == ("a", "b")
    store.write(document(1))
    store.write(document(2, ONE, TWO, hostname="b"))
    assert hostname_at(lookup, ONE) == "b"


def test_an_address_that_the_document_gave_up_leads_nowhere_though_its_link_is_left(store, lookup, tmp_path):
    store.write(document(1, ONE, TWO))
    assert hostname_at(lookup, TWO) == "a"
    store.write(document(1, ONE))
    (tmp_path / "by-address" / TWO).symlink_to(f"../{UUID(int=1)}.json")
    assert hostname_at(lookup, TWO) is None
    assert hostname_at(lookup, ONE) == "a"


def test_a_document_that_is_edited_in_place_is_read_again(store, lookup, tmp_path):
    store.write(document(1, ONE))
    assert hostname_at(lookup, ONE) == "a"
    file = tmp_path / f"{UUID(int=1)}.json"
    file.write_text(file.read_text().replace('"hostname": "a"', '"hostname": "b"').replace('"hostname":"a"', '"hostname":"b"'))
    os.utime(file, ns=(1, 1))
    assert hostname_at(lookup, ONE) == "b"


def test_what_cannot_be_read_is_told_each_time_and_again_served_once_it_can(store, lookup, tmp_path):
    store.write(document(1, ONE))
    file = tmp_path / f"{UUID(int=1)}.json"
    good = file.read_bytes()
    file.write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(EcomputeError):
            lookup.guest_at(ONE)
    file.write_bytes(good)
    assert hostname_at(lookup, ONE) == "a"


def test_a_folder_that_cannot_be_looked_into_is_told_with_its_name(lookup, tmp_path):
    (tmp_path / "by-address").write_text("no folder")
    with pytest.raises(EcomputeError, match="by-address"):
        lookup.guest_at(ONE)


def test_no_more_is_kept_than_may_be(store):
    guests = 8
    for number in range(guests):
        store.write(document(number, f"10.0.1.{number}"))
    lookup = Lookup(store, Host("h1", "x86_64"), most_bytes=100_000, now_ns=much_later)
    for _ in range(2):
        for number in range(guests):
            assert hostname_at(lookup, f"10.0.1.{number}") == "a"
    assert guests < store.reads <= 2 * guests  # in this order each is forgotten before it is asked for again
    assert hostname_at(lookup, f"10.0.1.{guests - 1}") == "a"
    assert store.reads <= 2 * guests


def test_a_document_larger_than_all_that_may_be_kept_is_served(store):
    store.write(dataclasses.replace(document(1, ONE), user_data_base64="eHh4" * 1000))
    lookup = Lookup(store, Host("h1", "x86_64"), most_bytes=1000, now_ns=much_later)
    assert [hostname_at(lookup, ONE) for _ in range(2)] == ["a", "a"]


@pytest.mark.parametrize(
    "much",
    [(1, 0, 0, 1), (20, 0, 0, 1), (1, 60_000, 0, 1), (1, 0, 16_000, 1), (1, 0, 0, 8), (20, 60_000, 16_000, 8)],
)
def test_what_is_kept_of_a_guest_takes_no_more_memory_than_is_counted(store, lookup, much):
    keys, user_data, vendor_data, cards = much
    nics = tuple(
        Address(
            "lan", f"52:54:00:00:00:{number:02x}", f"10.0.0.{number + 1}", 24, "10.0.0.254", (IpAddress(f"fd00::{number + 1}", 64),),
            "br0", source=AddressSource.STATIC, name_servers=("10.0.0.2", "10.0.0.3"),
        )
        for number in range(cards)
    )  # fmt: skip
    full = dataclasses.replace(
        document(1), addresses=nics, metadata_bridge="br0", keys=tuple(f"ssh-rsa {'A' * 500} key-{number}" for number in range(keys)),
        user_data_base64="eHh4" * (user_data // 3), vendor_data_base64="eHh4" * (vendor_data // 3),
    )  # fmt: skip
    store.write(full)
    tracemalloc.start()
    try:
        guest = lookup.guest_at(ONE)
        paths = [f"/openstack/{version}/meta_data.json" for version in openstack.VERSIONS]
        for path in (*paths, "/latest/", "/latest/meta-data/", "/latest/meta-data/public-keys/", "/nocloud/"):
            assert resource(guest, path, bytes) is not None
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < lookup._known[ONE].bytes
