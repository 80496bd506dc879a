"""Whether anybody listens at an endpoint, in the words that the rules know."""

from __future__ import annotations

import socket

import pytest

from common.etcd_reach import knock
from common.etcd_rules import Endpoint, Fault, Verdict
from tests.support.processes import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_somebody_listens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host.strip("[]"), 0), family=family) as server:
        knock(Endpoint.parse(f"http://{host}:{server.getsockname()[1]}"), 5.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_nobody_does_and_nothing_was_sent(host: str) -> None:
    endpoint = Endpoint.parse(f"http://{host}:{free_port()}")
    with pytest.raises(Fault) as caught:
        knock(endpoint, 5.0)
    assert caught.value.verdict is Verdict.RETRY_UNSENT
    assert caught.value.endpoint == endpoint
    assert host in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_a_name_is_left_to_the_resolver_that_has_a_bound(host: str) -> None:
    knock(Endpoint.parse(f"http://{host}:{free_port()}"), 5.0)
