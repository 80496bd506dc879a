"""What an instance needs in people's words becomes Placement's query, beside a raw one, in its place, or upon another's."""

from __future__ import annotations

from uuid import UUID

import pytest

from common.errors import ConfigError
from common.validate import parse_resources_query
from eschedule.arguments import parse
from eschedule.needs import Places, query_of
from eschedule.sizes import GIB, MIB, parse_size, size_text

HOST = UUID("0b4fd7c1-6f5b-4c6e-9a0e-3d2c5a7e8f10")
RAW = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
_RAW = "resources=DISK_GB:1,MEMORY_MB:256,VCPU:1"


def asked(*words: str, base: str = "") -> str:
    places = Places(lambda _host: HOST, lambda zone: f"CUSTOM_ZONE_{zone.upper()}")
    return parse_resources_query(query_of(parse(["create", *words]), lambda: places, base)).query


@pytest.mark.parametrize(
    ("words", "query"),
    [
        (["--cpus", "2", "--memory", "4G", "--disk", "20G"], "resources=DISK_GB:20,MEMORY_MB:4096,VCPU:2"),
        (["--cpus=2", "--memory=1.5GiB", "--disk=1T", "debian"], "resources=DISK_GB:1024,MEMORY_MB:1536,VCPU:2"),
        ([RAW, "--trait", "CUSTOM_A", "--not-trait", "CUSTOM_B"], f"required=%21CUSTOM_B,CUSTOM_A&{_RAW}"),
        ([RAW, "--host", "node1"], f"in_tree={HOST}&{_RAW}"),
        ([f"{RAW}&in_tree={HOST}", "--host", "node1"], f"in_tree={HOST}&{_RAW}"),
        ([RAW, "--zone", "a", "--cpus", "1"], f"required=CUSTOM_ZONE_A&{_RAW}"),
        (
            ["resources=CUSTOM_GPU:1", "--cpus=1", "--memory=256M", "--disk=1G"],
            "resources=CUSTOM_GPU:1,DISK_GB:1,MEMORY_MB:256,VCPU:1",
        ),
    ],
)
def test_options_and_a_raw_query_are_put_together(words: list[str], query: str) -> None:
    assert asked(*words).replace("!", "%21") == query


def test_upon_anothers_query_options_replace_what_it_says() -> None:
    base = f"{RAW}&required=CUSTOM_A&in_tree={UUID(int=7)}"
    assert asked("--like", "web", base=base) == parse_resources_query(base).query
    changed = asked("--like", "web", "--memory", "1G", "--host", "node1", base=base)
    assert "MEMORY_MB:1024" in changed and "VCPU:1" in changed and f"in_tree={HOST}" in changed and "CUSTOM_A" in changed
    assert asked("--like", "web", RAW, base="resources=VCPU:9,MEMORY_MB:1,DISK_GB:1") == parse_resources_query(RAW).query
    pinned = asked("--like", "web", "--cpus", "2", base="resources=PCPU:1,MEMORY_MB:256,DISK_GB:1")
    assert "PCPU:2" in pinned and "VCPU" not in pinned


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: 'resources=…', or --cpus N --memory SIZE --disk SIZE"),
        (["--cpus", "2"], "--memory and --disk are missing"),
        (["--cpus", "2", "--memory", "4", "--disk", "1G"], "has no unit; write 4G or 4M"),
        (["--cpus", "2", "--memory", "4GB", "--disk", "1G"], '"GB" is none of the units K, M, G or T'),
        (["--cpus", "2", "--memory", "4 parsecs", "--disk", "1G"], "write 4G or 512M"),
        (["--cpus", "2", "--memory", "4G", "--disk", "100M"], "no whole number of GiB; write 1G"),
        (["--cpus", "2", "--memory", "much", "--disk", "1G"], "is no size"),
        (["--cpus", "two", "--memory", "1G", "--disk", "1G"], "--cpus"),
        ([RAW, "--cpus", "2"], "the request says VCPU:1"),
        ([RAW, "--trait", "gpu"], '--trait "gpu" is no trait'),
        ([RAW, "--trait", "A", "--not-trait", "A"], "both requires and forbids A"),
        ([f"{RAW}&in_tree={UUID(int=7)}", "--host", "node1"], "give one of them"),
        (["resources=PCPU:1,MEMORY_MB:1,DISK_GB:1", "--cpus", "2"], "the request asks for PCPU by itself"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(*words)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "unit", "amount"), [("4G", MIB, 4096), ("1048576K", MIB, 1024), ("2tib", GIB, 2048)])
def test_sizes_are_powers_of_two_and_are_shown_as_they_are_read(text: str, unit: int, amount: int) -> None:
    assert parse_size(text, "x", unit, "4G") == amount
    assert parse_size(size_text(amount, unit), "x", unit, "4G") == amount
