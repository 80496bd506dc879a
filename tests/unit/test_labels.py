"""Selectors: what they choose, and what is none; the labels that zones are made of."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.model import HostAdmin
from eschedule.arguments import parse
from eschedule.host_admin import parse_trait, with_labels
from eschedule.labels import parse_given, parse_selector

LABELS = {"app": "web", "tier": "front", "empty": ""}


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("app=web", True), ("app==web", True), ("app=db", False), ("app!=db", True), ("app!=web", False), ("other!=x", True),
        ("app", True), ("other", False), ("!other", True), ("!app", False), ("app=web,tier", True), ("app=web, !tier", False),
        ("empty=", True), ("empty", True),
    ],
)  # fmt: skip
def test_a_selector_takes_what_all_its_parts_hold_for(text: str, takes: bool) -> None:
    assert parse_selector(text).takes(LABELS) is takes


@pytest.mark.parametrize("text", ["", ",", "app=web,", "=web", "a b", "app=a b", "!", "!app=web", "app>1"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="selector"):
        parse_selector(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop", "-l", "app=web", "w1"], "instances are named, and chosen by -l"),
        (["stop"], "NAME|UUID, or -l SELECTOR"),
        (["label", "w1"], "no label is given"),
        (["unlabel", "w1"], "no label is given"),
        (["label", "app=web"], "NAME|UUID, or -l SELECTOR"),
    ],
)
def test_instances_are_named_or_chosen(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(words)
    assert said in str(refused.value)


def test_words_are_instances_or_labels() -> None:
    found = parse(["label", "w1", "app=web", "w2", "old-"])
    assert (found.instances, found.labels) == (["w1", "w2"], ["app=web", "old-"])
    found = parse(["unlabel", "-l", "app", "old", "older"])
    assert (found.instances, found.labels) == ([], ["old", "older"])
    found = parse(["unlabel", "w1", "old"])
    assert (found.instances, found.labels) == (["w1"], ["old"])


def test_new_instances_are_given_labels_in_order_and_none_is_taken_away() -> None:
    assert parse_given(["b=1", "a=2"]) == (("a", "2"), ("b", "1"))
    with pytest.raises(ConfigError, match="takes a label away"):
        parse_given(["a-"])


def test_the_trait_of_a_zone_goes_with_its_label() -> None:
    admin = with_labels({"zone": "eu-1", "rack": "7"}, ())(HostAdmin(traits=("CUSTOM_GPU",)))
    assert admin.traits == ("CUSTOM_GPU", "CUSTOM_ZONE_EU_1")
    assert with_labels({"zone": "b"}, ())(admin).traits == ("CUSTOM_GPU", "CUSTOM_ZONE_B")
    assert with_labels({}, {"zone"})(admin).traits == ("CUSTOM_GPU",)
    with pytest.raises(ConfigError, match="goes with a label"):
        parse_trait("CUSTOM_ZONE_A")
