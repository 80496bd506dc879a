"""MetadataStore: what a reader can see at any moment, and that a crash between any two lines heals."""

from __future__ import annotations

import base64
import dataclasses
import stat
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from common import metadata
from common.errors import InvalidSpec, Transient, UnsupportedSchema
from common.metadata import MetadataDocument, MetadataStore, normal_address
from common.model import Address, MetadataAccess
from common.nics import AddressSource

UUID_1, UUID_2 = UUID(int=1), UUID(int=2)


def document(uuid: UUID = UUID_1, *addresses: str, name: str = "vm") -> MetadataDocument:
    return MetadataDocument(uuid, name, addresses=tuple(Address("default", f"mac-{a}", a) for a in addresses))


@pytest.fixture
def store(tmp_path: Path) -> MetadataStore:
    return MetadataStore(tmp_path / "state" / "metadata")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "metadata"


def test_what_was_written_is_found_by_uuid_and_by_every_address(store):
    written = document(UUID_1, "192.168.122.5", "10.0.0.5", "fd00::5")
    store.write(written)
    assert store.read(UUID_1) == written
    assert [store.by_address(a) for a in ("192.168.122.5", "10.0.0.5", "fd00::5")] == [written] * 3
    assert store.list() == (UUID_1,)
    assert store.is_current(written)


def test_nothing_there_is_no_error(store):
    assert store.read(UUID_1) is None
    assert store.by_address("192.168.122.5") is None
    assert store.list() == ()
    assert not store.exists(UUID_1)
    assert not store.is_current(document())
    store.remove(UUID_1)


def test_modes_keep_others_out_whatever_the_umask(store, directory):
    store.write(document(UUID_1, "192.168.122.5"))
    assert stat.S_IMODE((directory / f"{UUID_1}.json").stat().st_mode) == 0o640
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert stat.S_IMODE((directory / "by-address").stat().st_mode) == 0o750


def test_links_are_relative_so_that_the_directory_can_be_moved(store, directory, tmp_path):
    store.write(document(UUID_1, "192.168.122.5"))
    directory.rename(tmp_path / "moved")
    assert MetadataStore(tmp_path / "moved").by_address("192.168.122.5") is not None


def test_an_address_that_the_instance_lost_leads_nowhere(store):
    store.write(document(UUID_1, "192.168.122.5", "192.168.122.6"))
    store.write(document(UUID_1, "192.168.122.6"))
    assert store.by_address("192.168.122.5") is None
    assert store.by_address("192.168.122.6") is not None


def test_a_link_to_a_document_that_does_not_claim_the_address_counts_as_absent(store, directory):
    store.write(document(UUID_1, "192.168.122.5"))
    (directory / "by-address" / "192.168.122.9").symlink_to(f"../{UUID_1}.json")
    assert store.by_address("192.168.122.9") is None
    assert not store.is_current(document(UUID_1, "192.168.122.5"))
    store.write(document(UUID_1, "192.168.122.5"))
    assert not (directory / "by-address" / "192.168.122.9").is_symlink()


def test_a_link_to_a_document_that_is_gone_counts_as_absent(store, directory):
    store.write(document(UUID_1, "192.168.122.5"))
    (directory / f"{UUID_1}.json").unlink()
    assert store.by_address("192.168.122.5") is None


def found_by(store, address):
    found = store.by_address(address)
    return found and found.uuid


def test_of_two_that_claim_an_address_the_first_is_found_until_it_goes_and_neither_is_written_over_and_over(store):
    first, second = document(UUID_1, "192.168.122.5"), document(UUID_2, "192.168.122.5", "192.168.122.6")
    store.write(first)
    for written in (second, first, second):
        store.write(written)
        assert (found_by(store, "192.168.122.5"), found_by(store, "192.168.122.6")) == (UUID_1, UUID_2)
        assert store.is_current(first)
        assert store.is_current(second)
    store.remove(UUID_1)
    assert found_by(store, "192.168.122.5") is None
    assert not store.is_current(second)
    store.write(second)
    assert found_by(store, "192.168.122.5") == UUID_2
    store.remove(UUID_1)
    assert found_by(store, "192.168.122.5") == UUID_2
    assert store.list() == (UUID_2,)


@pytest.mark.parametrize("what_is_left", ["nothing", "{", '{"schema":2}', "another address"])
def test_an_address_of_a_document_that_does_not_claim_it_is_free(store, directory, what_is_left):
    store.write(document(UUID_1, "192.168.122.5"))
    left = directory / f"{UUID_1}.json"
    if what_is_left == "nothing":
        left.unlink()
    elif what_is_left == "another address":
        left.write_text(document(UUID_1, "192.168.122.9").to_json())
    else:
        left.write_text(what_is_left)
    second = document(UUID_2, "192.168.122.5")
    assert not store.is_current(second)
    store.write(second)
    assert found_by(store, "192.168.122.5") == UUID_2
    assert store.is_current(second)


@pytest.mark.parametrize(
    ("bridge", "vlan", "expected"),
    [("virbr0", 0, True), ("virbr0", 5, False), ("br0", 0, False), ("br0", 5, False)],
)
def test_a_card_on_a_bridge_counts_on_the_wire_of_md_server_alone(bridge, vlan, expected):
    """Elsewhere its address may be another guest's at the same time."""
    card = Address("lan", "52:54:00:00:00:0a", "192.168.122.5", bridge=bridge, vlan=vlan, source=AddressSource.STATIC)
    newcomer = MetadataDocument(UUID_2, "newcomer", addresses=(card,), metadata_bridge="virbr0")
    assert newcomer.index == ({"192.168.122.5", "fe80::5054:ff:fe00:a"} if expected else frozenset())


def test_where_md_server_is_on_no_known_bridge_cards_on_bridges_do_not_count():
    card = Address("lan", "52:54:00:00:00:0a", "192.168.122.5", bridge="br0", source=AddressSource.STATIC)
    assert MetadataDocument(UUID_2, "newcomer", addresses=(card,)).index == frozenset()


def test_a_missing_link_makes_a_document_not_current(store, directory):
    written = document(UUID_1, "192.168.122.5")
    store.write(written)
    (directory / "by-address" / "192.168.122.5").unlink()
    assert not store.is_current(written)


@pytest.mark.parametrize(
    "change", [{"hostname": "x"}, {"keys": ("k",)}, {"user_data_base64": "eA=="}, {"resources": {"VCPU": 2}}]
)
def test_a_change_of_any_field_makes_a_document_not_current(store, change):
    written = document(UUID_1, "192.168.122.5")
    store.write(written)
    assert not store.is_current(dataclasses.replace(written, **change))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("192.168.122.5", "192.168.122.5"), ("::ffff:192.168.122.5", "192.168.122.5"), ("FD00:0:0::0005", "fd00::5"), ("fe80::1", "fe80::1"),
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(text, normal):
    assert normal_address(text) == normal


@pytest.mark.parametrize(
    "text", ["", "x", "../x", "192.168.122.5/24", "192.168.122.05", "fe80::1%virbr0", "192.168.122.5\n", "1"]
)
def test_what_is_no_address_of_a_guest_is_refused(text, store):
    with pytest.raises(InvalidSpec):
        normal_address(text)
    with pytest.raises(InvalidSpec):
        store.by_address(text)


def test_a_document_is_found_by_the_normal_form_of_its_address(store):
    store.write(document(UUID_1, "FD00::0005"))
    assert store.by_address("fd00::5") is not None


def test_a_nic_without_an_address_has_no_link(store):
    store.write(document(UUID_1, "", "192.168.122.5"))
    assert store.is_current(document(UUID_1, "", "192.168.122.5"))


def test_a_guest_is_found_by_the_address_that_each_of_its_cards_gives_itself(store, directory):
    cards = (Address("default", "52:54:c0:a8:7a:32", "192.168.122.50"), Address("", "52:54:00:00:00:0A", "", bridge="br0"))
    store.write(MetadataDocument(UUID_1, "vm", addresses=cards, metadata_bridge="br0"))
    for address in ("fe80::5054:c0ff:fea8:7a32", "FE80::5054:ff:fe00:a", "192.168.122.50"):
        found = store.by_address(address)
        assert found is not None
        assert found.uuid == UUID_1
    store.remove(UUID_1)
    assert list((directory / "by-address").iterdir()) == []


def test_where_nobody_may_read_it_by_http_there_is_no_way_to_find_it(store):
    card = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50")
    store.write(MetadataDocument(UUID_1, "vm", addresses=(card,), access=MetadataAccess.OFF))
    assert store.by_address("fe80::5054:c0ff:fea8:7a32") is None
    assert store.by_address("192.168.122.50") is None


def test_an_address_that_a_guest_says_it_has_leads_to_no_document(store):
    """Else it could say another's, and have that one read its user data."""
    store.write(document(UUID_1, "192.168.122.5"))
    said = Address("", "52:54:00:00:00:0a", "192.168.122.5", 24, bridge="br0", source=AddressSource.LEARNED)
    liar = MetadataDocument(UUID_2, "liar", addresses=(said,), metadata_bridge="br0")
    store.write(liar)
    found = store.by_address("192.168.122.5")
    assert found is not None
    assert found.uuid == UUID_1
    assert liar.index == {"fe80::5054:ff:fe00:a"}  # its MAC is enforced


@pytest.mark.parametrize("mac", ["", "52:54", "52:54:00:00:00:0g", "52:54:00:00:00:00:00", "../..", "52:54:00:00:00:0a\n"])
def test_what_is_no_mac_makes_no_address(mac):
    assert MetadataDocument(UUID_1, "vm", addresses=(Address("default", mac, ""),)).index == frozenset()


def test_a_document_of_a_version_to_come_is_held_and_can_be_removed(store, directory):
    store.write(document(UUID_1, "192.168.122.5"))
    (directory / f"{UUID_1}.json").write_text('{"schema":2}')
    with pytest.raises(UnsupportedSchema):
        store.by_address("192.168.122.5")
    assert store.exists(UUID_1)
    store.remove(UUID_1)
    assert not store.exists(UUID_1)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"schema":1}', b'{"schema":1,"uuid":"x","name":"n"}'])
def test_what_is_no_document_is_refused(store, directory, content):
    store.write(document(UUID_1, "192.168.122.5"))
    (directory / f"{UUID_1}.json").write_bytes(content)
    with pytest.raises(InvalidSpec):
        store.by_address("192.168.122.5")


def test_a_file_system_that_refuses_is_told_with_the_path(tmp_path):
    (tmp_path / "metadata").write_text("a file where the directory should be")
    with pytest.raises(Transient, match=str(tmp_path)):
        MetadataStore(tmp_path / "metadata").write(document())


def test_user_data_comes_back_to_the_byte():
    data = bytes(range(256))
    assert dataclasses.replace(document(), user_data_base64=base64.b64encode(data).decode()).user_data == data
    assert document().user_data is None
    with pytest.raises(InvalidSpec):
        _ = dataclasses.replace(document(), user_data_base64="not base64!").user_data


def test_foreign_files_in_the_directory_are_no_instances(store, directory):
    store.write(document(UUID_1))
    for name in ("x.json", f"{UUID_2}.json.partial", f"{UUID_2}.txt", f"{UUID_2}".upper() + ".JSON", "README"):
        (directory / name).touch()
    assert store.list() == (UUID_1,)


class Crash(BaseException):
    """As if the process had ended here."""


def crashing_at(line: int, call: Callable[[], object]) -> bool:
    """Run *call*, ending it before the *line*-th line of common/metadata.py that it comes to; whether it came that far."""
    left = line

    def trace(frame: types.FrameType, event: str, argument: object) -> object:
        nonlocal left
        if frame.f_code.co_filename != metadata.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Crash
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    except Crash:
        return True
    finally:
        sys.settrace(before)
    return False


def files_of(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


def test_a_crash_between_any_two_lines_of_write_is_never_seen_half_and_healed_by_the_next(tmp_path):
    old, new = document(UUID_1, "10.0.0.1", "10.0.0.2", name="old"), document(UUID_1, "10.0.0.2", "10.0.0.3", name="new")
    for line in range(1, 1000):
        store = MetadataStore(tmp_path / str(line))
        store.write(old)
        crashed = crashing_at(line, lambda store=store: store.write(new))  # type: ignore[misc]
        assert store.read(UUID_1) in (old, new)
        assert store.by_address("10.0.0.1") in (None, old)
        assert store.by_address("10.0.0.2") in (old, new)  # never lost: the guest that runs keeps its metadata
        assert store.by_address("10.0.0.3") in (None, new)
        store.write(new)
        assert store.is_current(new)
        assert files_of(tmp_path / str(line)) == {f"{UUID_1}.json", "by-address/10.0.0.2", "by-address/10.0.0.3"}
        if not crashed:
            assert line > 50
            return
    raise AssertionError("write did not end")


def test_a_crash_between_any_two_lines_of_a_first_write_or_a_remove_leaves_what_remove_takes_away(tmp_path):
    written = document(UUID_1, "10.0.0.1", "10.0.0.2")
    for action in ("write", "remove"):
        for line in range(1, 1000):
            directory = tmp_path / f"{action}-{line}"
            store = MetadataStore(directory)
            if action == "remove":
                store.write(written)
            call = (lambda s=store: s.write(written)) if action == "write" else (lambda s=store: s.remove(UUID_1))  # type: ignore[misc]
            crashed = crashing_at(line, call)
            assert store.by_address("10.0.0.1") in (None, written)
            if files_of(directory):
                assert store.exists(UUID_1), f"{action} crashed at {line}: nobody would come back for {files_of(directory)}"
            store.remove(UUID_1)
            assert files_of(directory) == set()
            if not crashed:
                break
        else:
            raise AssertionError(f"{action} did not end")


def test_readers_beside_a_writer_see_the_old_or_the_new_document(store):
    versions = [document(UUID_1, "10.0.0.1", name=f"v{n}") for n in (1, 2)]
    store.write(versions[0])
    ended = threading.Event()
    seen: list[object] = []

    def read() -> None:
        while not ended.is_set():
            seen.append(store.by_address("10.0.0.1"))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        store.write(versions[n % 2])
    ended.set()
    reader.join(10)
    assert seen
    assert all(s in versions for s in seen)


def test_instances_written_and_removed_by_several_threads_do_not_disturb_each_other(store):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                store.write(document(UUID(int=number), f"10.0.0.{number}"))
                store.remove(UUID(int=number))
            store.write(document(UUID(int=number), f"10.0.0.{number}"))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert [store.by_address(f"10.0.0.{n}") is not None for n in range(1, 6)] == [True] * 5
