"""Keys are as the documentation lists them, stay under their prefix, and are parsed back to what they were built of."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.keys import DEFAULT_PREFIX, Keys

P, I = UUID(int=1), UUID(int=2)  # noqa: E741 - provider and instance
KEYS = Keys()


def test_keys_are_those_of_the_documentation():
    assert KEYS.prefix == DEFAULT_PREFIX == "/etcd-compute/v1/"
    assert KEYS.owner(P) == f"/etcd-compute/v1/owners/{P}"
    assert KEYS.host(P) == f"/etcd-compute/v1/hosts/{P}"
    assert KEYS.host_admin(P) == f"/etcd-compute/v1/host-admin/{P}"
    assert KEYS.instance(I) == f"/etcd-compute/v1/instances/{I}"
    assert KEYS.spec(P, I) == f"/etcd-compute/v1/spec/{P}/{I}"
    assert KEYS.status(P, I) == f"/etcd-compute/v1/status/{P}/{I}"
    assert KEYS.name("web-1") == "/etcd-compute/v1/names/web-1"
    assert KEYS.group("web", P) == f"/etcd-compute/v1/groups/web/{P}"


def test_a_listing_prefix_covers_its_keys_and_no_others():
    everything = [
        KEYS.owner(P), KEYS.host(P), KEYS.host_admin(P), KEYS.instance(I), KEYS.spec(P, I), KEYS.status(P, I),
        KEYS.name("web-1"), KEYS.group("web", P),
    ]  # fmt: skip
    for prefix, key in [
        (KEYS.hosts(), KEYS.host(P)), (KEYS.host_admins(), KEYS.host_admin(P)), (KEYS.instances(), KEYS.instance(I)),
        (KEYS.specs(), KEYS.spec(P, I)), (KEYS.specs(P), KEYS.spec(P, I)), (KEYS.statuses(), KEYS.status(P, I)),
        (KEYS.statuses(P), KEYS.status(P, I)), (KEYS.names(), KEYS.name("web-1")),
    ]:  # fmt: skip
        assert [k for k in everything if k.startswith(prefix)] == [key]
    assert not KEYS.spec(I, P).startswith(KEYS.specs(P))


@given(st.uuids(), st.uuids(), st.sampled_from(["/a/", "/etcd-compute/v1/", "/spec/", "/x/spec/"]))
def test_what_is_built_is_parsed_back(provider, instance, prefix):
    keys = Keys(prefix)
    assert keys.parse_provider_instance(keys.spec(provider, instance)) == (provider, instance)
    assert keys.parse_provider_instance(keys.status(provider, instance)) == (provider, instance)
    for key in (keys.host(provider), keys.owner(provider), keys.host_admin(provider)):
        assert keys.parse_host(key) == provider


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        KEYS.host(P),
        KEYS.instance(I),
        KEYS.specs(P),
        f"{KEYS.specs(P)}x",
        f"/other/spec/{P}/{I}",
        f"{KEYS.spec(P, I)}/more",
    ],
)
def test_another_key_is_no_spec_or_status(key):
    with pytest.raises(ValueError):
        KEYS.parse_provider_instance(key)


@pytest.mark.parametrize("key", ["", "/", KEYS.spec(P, I), KEYS.hosts(), f"{KEYS.host(P)}/more", f"/other/hosts/{P}"])
def test_another_key_is_no_host(key):
    with pytest.raises(ValueError):
        KEYS.parse_host(key)


@given(st.text(max_size=60))
def test_no_text_gives_another_exception(text):
    for parse in (KEYS.parse_provider_instance, KEYS.parse_host):
        for key in (text, KEYS.prefix + text, f"{KEYS.prefix}spec/{text}", f"{KEYS.prefix}hosts/{text}"):
            with pytest.raises(ValueError):
                parse(key)
