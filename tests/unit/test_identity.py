"""Ids of the machine and what its CPU can, read from files that tests write."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from common.errors import ConfigError
from ecompute.identity import boot_id, cpu_flags, machine_id, provider_uuid


def test_a_configured_uuid_is_taken_as_it_is() -> None:
    assert provider_uuid(UUID(int=5), "machine", "host") == UUID(int=5)


def test_a_computed_uuid_stays_the_same_and_tells_clones_apart() -> None:
    first = provider_uuid(None, "machine", "host")
    assert provider_uuid(None, "machine", "host") == first
    assert provider_uuid(None, "machine", "the clone's host") != first
    assert provider_uuid(None, "another machine", "host") != first


def test_without_any_id_it_says_what_to_configure() -> None:
    with pytest.raises(ConfigError, match="uuid:"):
        provider_uuid(None, "", "")


def test_a_missing_machine_id_is_empty(tmp_path: Path) -> None:
    assert machine_id(tmp_path / "machine-id") == ""
    (tmp_path / "machine-id").write_text("abc\n")
    assert machine_id(tmp_path / "machine-id") == "abc"


def test_this_boot_has_an_id() -> None:
    assert UUID(boot_id())


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 vmx\n\nprocessor : 1\nflags : fpu\n", {"fpu", "avx2", "vmx"}),
        ("Features\t: fp asimd\n", {"fp", "asimd"}),
        ("processor : 0\n", set()),
    ],
)
def test_cpu_flags(tmp_path: Path, text: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags
