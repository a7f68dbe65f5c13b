"""Own listeners stay on loopback when local, and follow the configuration on a cluster."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from trinity_serve.addresses import claim_port, listen, own_hosts, url_of
from trinity_serve.config import parse_serve_args

MODEL = {"path": "models/demo"}


def test_local_listens_on_loopback_whatever_the_node_is_called() -> None:
    config = parse_serve_args({"mode": "local", "model": MODEL})
    assert own_hosts(config, "10.0.0.7") == ("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("network", "hosts"),
    [
        ({}, ("10.0.0.7", "10.0.0.7")),
        ({"bind_host": "10.1.0.1"}, ("10.1.0.1", "10.1.0.1")),
        ({"advertise_host": "pod-7"}, ("10.0.0.7", "pod-7")),
        ({"bind_host": "0.0.0.0", "advertise_host": "pod-7"}, ("0.0.0.0", "pod-7")),
    ],
)
def test_a_cluster_uses_the_nodes_address_unless_told(
    network: dict[str, str], hosts: tuple[str, str]
) -> None:
    config = parse_serve_args({"model": MODEL, "network": network})
    assert own_hosts(config, "10.0.0.7") == hosts


def test_a_free_port_is_found_for_port_0_and_can_be_listened_on() -> None:
    port = claim_port("127.0.0.1", 0)
    assert port > 0
    with listen("127.0.0.1", port) as listening:
        assert listening.getsockname()[1] == port


def test_a_port_in_use_is_refused_by_number() -> None:
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} cannot be listened on"):
            claim_port("127.0.0.1", port)


def test_addresses_of_ipv6_stand_in_brackets_in_a_url() -> None:
    assert url_of("::1", 8000) == "http://[::1]:8000"
    assert url_of("localhost", 443, "https") == "https://localhost:443"
