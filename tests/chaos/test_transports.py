"""Outputs over TCP are those over Unix sockets, also while its connections suffer."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.chaos.events import ON_TCP, events_for
from tests.chaos.faults import Victims
from tests.chaos.harness import Load, Schedule, disturbed, golden_differences, undisturbed
from tests.chaos.own_server import over_tcp, over_unix_sockets, scale_options, serve_file
from tests.chaos.table import complaints
from tests.chaos.target import Target
from tests.chaos.tcp import ADVERTISE_HOST, TcpDetours, listening_ports
from tests.chaos.workload import Sizes, endless_request, mixed_requests
from trinity_serve.config import check_ray_config

LISTENER = """
import socket, sys
mapped = sys.argv[2] == "IPv6"
address = ("::ffff:127.0.0.1" if mapped else "127.0.0.1", 0)
family = socket.AF_INET6 if mapped else socket.AF_INET
with socket.create_server(address, family=family, dualstack_ipv6=mapped) as listener:
    while True:
        connection, _ = listener.accept()
        connection.sendall(connection.recv(100))
        connection.close()
"""


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    end_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.005)
    return condition()


def answered(port: int) -> bytes:
    """Return what comes back through the address that only proxies listen at."""
    try:
        with socket.create_connection((ADVERTISE_HOST, port), timeout=5.0) as connection:
            connection.sendall(b"ping")
            return connection.recv(100)
    except ConnectionError:
        return b""


# gRPC listens at IPv4 addresses by sockets of IPv6.
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_whatever_listens_is_reached_at_the_other_address_while_it_lives(family: str) -> None:
    listeners = Victims(os.getpid(), "listener-of-a-test")
    process = subprocess.Popen([sys.executable, "-c", LISTENER, "listener-of-a-test", family])
    try:
        with TcpDetours(listeners) as detours:
            assert eventually(lambda: len(listening_ports(process.pid)) == 1)
            [port] = listening_ports(process.pid)
            assert eventually(lambda: answered(port) == b"ping")
            assert len(detours.before(process.pid)) == 1
            process.kill()
            process.wait()
            assert eventually(lambda: answered(port) == b"")
            assert detours.before(process.pid) == []
    finally:
        process.kill()
        process.wait()


def test_the_file_says_what_the_options_say(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "ray_config.yaml"
    options = ["--model", str(tiny_checkpoint), "--kv-memory", "32MiB", *scale_options()]
    path.write_text(yaml.safe_dump(serve_file(options)))
    config, scale = check_ray_config(path), Target("", 0)
    assert config.attention.num_replicas == scale.num_ranks
    assert config.attention.kv_memory_bytes == 2**25
    assert config.experts.transport == "grpc"
    assert config.network.advertise_host == ADVERTISE_HOST


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_outputs_are_the_same_over_both_and_while_tcp_connections_suffer(
    tiny_checkpoint: Path,
) -> None:
    requests = mixed_requests("tiny", 16, 6, sizes=Sizes(vocab_size=512))
    model = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny", "--dtype", "float32")
    options = [*model, *scale_options(), "--kv-memory", "32MiB", "--threads", "1"]
    with over_unix_sockets(options) as target:
        golden = asyncio.run(undisturbed(Load(target.url, requests)))
    with over_tcp(options) as target:
        load = Load(target.url, requests, concurrency=6)
        again = asyncio.run(undisturbed(load))
        faults = events_for(list(ON_TCP), target, endless_request("tiny"))
        schedule = Schedule(3, len(faults), pause_s=(0.2, 1.0), settled=target.settled)
        result = asyncio.run(disturbed(load, golden, faults, schedule))
    assert golden_differences(golden, again, "over TCP") == []
    assert complaints(result) == []
    assert {event.fault.name for event in result.events} == set(ON_TCP)
