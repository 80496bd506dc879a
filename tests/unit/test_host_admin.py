"""What operators set for hosts: what may be typed, what an edit changes, and two who edit at once."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from common.errors import ConfigError, Conflict
from common.keys import Keys
from common.model import HostAdmin
from common.placement_types import DISABLED_TRAIT, OWNER_TRAIT
from eschedule import host_admin
from eschedule.command_line.parser import parse_reason
from eschedule.host_admin import parse_trait
from eschedule.labels import parse_labels
from tests.fakes.store import FakeStore

PROVIDER = UUID("11111111-2222-4333-8444-555555555555")
KEYS = Keys("/test/")
KEY = KEYS.host_admin(PROVIDER)
off = host_admin.disabled(reason="new disks", by="ann@desk", at="2026-01-01T00:00:00.000Z")
on = host_admin.enabled(by="bob@desk", at="2026-01-02T00:00:00.000Z")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


class TestEdits:
    def test_disabled_once_it_keeps_who_and_since_until_the_reason_is_another(self) -> None:
        first = off(HostAdmin())
        assert (first.disabled, first.reason, first.by, first.since) == (
            True,
            "new disks",
            "ann@desk",
            "2026-01-01T00:00:00.000Z",
        )
        again = host_admin.disabled(reason="", by="bob@desk", at="later")
        assert again(first) == first == off(first)
        assert host_admin.disabled(reason="other", by="bob@desk", at="later")(first).by == "bob@desk"

    def test_enabled_it_has_no_reason_any_more(self) -> None:
        assert on(HostAdmin()) == HostAdmin()
        assert on(off(HostAdmin())) == HostAdmin(by="bob@desk", since="2026-01-02T00:00:00.000Z")

    def test_traits_and_labels_are_added_and_taken_and_nothing_else_changes(self) -> None:
        before = off(HostAdmin(traits=("CUSTOM_B",), labels={"rack": "7", "row": "2"}))
        after = host_admin.with_traits({"CUSTOM_A"}, {"CUSTOM_B", "CUSTOM_C"})(before)
        assert after.traits == ("CUSTOM_A",) and after.reason == "new disks"
        assert host_admin.with_labels({"rack": "8", "zone": ""}, {"row", "none"})(before).labels == {"rack": "8", "zone": ""}

    def test_labels_are_bounded(self) -> None:
        with pytest.raises(ConfigError, match="at most 64 labels"):
            host_admin.with_labels({f"l{n}": "" for n in range(65)}, ())(HostAdmin())


class TestWhatIsTyped:
    @pytest.mark.parametrize("text", ["CUSTOM_GPU", "HW_CPU_X86_AVX2"])
    def test_a_trait(self, text: str) -> None:
        assert parse_trait(text) == text

    @pytest.mark.parametrize("text", ["", "custom_gpu", "CUSTOM-GPU", "C" * 256, DISABLED_TRAIT, OWNER_TRAIT])
    def test_no_trait_for_operators(self, text: str) -> None:
        with pytest.raises(ConfigError, match="trait"):
            parse_trait(text)

    def test_labels(self) -> None:
        assert parse_labels(["rack=7", "zone-", "empty=", "a.b/c=x_Y"]) == (
            {"rack": "7", "empty": "", "a.b/c": "x_Y"},
            {"zone"},
        )

    @pytest.mark.parametrize(
        "texts", [["rack"], ["=7"], ["-"], ["a b=1"], ["a=b c"], ["a=1", "a-"], ["a=1", "a=2"], ["x" * 64 + "=1"]]
    )
    def test_no_labels(self, texts: list[str]) -> None:
        with pytest.raises(ConfigError):
            parse_labels(texts)

    def test_a_reason_is_one_line(self) -> None:
        assert parse_reason("new disks") == "new disks"
        for text in ("a\nb", "\x1b[2J", "x" * 501):
            with pytest.raises(ConfigError, match="--reason"):
                parse_reason(text)


class TestChange:
    def test_the_first_and_the_next(self, store: FakeStore) -> None:
        assert host_admin.change(store, KEYS, PROVIDER, on) == (HostAdmin(), False)
        assert store.get(KEY) is None
        admin, is_new = host_admin.change(store, KEYS, PROVIDER, off)
        assert is_new and admin.disabled
        assert host_admin.change(store, KEYS, PROVIDER, off) == (admin, False)
        assert host_admin.change(store, KEYS, PROVIDER, on)[0].disabled is False

    def test_fields_of_a_newer_version_stay(self, store: FakeStore) -> None:
        store.create(KEY, json.dumps({**json.loads(HostAdmin().to_json()), "colour": "blue"}))
        host_admin.change(store, KEYS, PROVIDER, off)
        item = store.get(KEY)
        assert item is not None and json.loads(item.value)["colour"] == "blue" and HostAdmin.from_json(item.value).disabled

    def test_whoever_comes_in_between_loses_nothing(self, store: FakeStore) -> None:
        others = [host_admin.with_labels({"rack": "7"}, ())]

        def edit(admin: HostAdmin) -> HostAdmin:
            if others:
                host_admin.change(store, KEYS, PROVIDER, others.pop())
            return off(admin)

        admin, _ = host_admin.change(store, KEYS, PROVIDER, edit)
        assert admin.disabled and admin.labels == {"rack": "7"}

    def test_it_is_given_up_where_others_never_end(self, store: FakeStore) -> None:
        count = iter(range(1000))

        def edit(admin: HostAdmin) -> HostAdmin:
            host_admin.change(store, KEYS, PROVIDER, host_admin.with_labels({"n": str(next(count))}, ()))
            return off(admin)

        with pytest.raises(Conflict, match="try again"):
            host_admin.change(store, KEYS, PROVIDER, edit)
