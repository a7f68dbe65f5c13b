"""The server that a chaos run is about: one that runs, or our own on Ray, started for it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml

from tests.chaos.faults import Victims
from tests.chaos.target import SHARD, Target
from tests.chaos.tcp import ADVERTISE_HOST, BIND_HOST, TcpDetours
from tests.support.server import ServerCommand, running, trinity_server
from trinity_serve.addresses import claim_port
from trinity_serve.cli.serve import OPTION_KEYS
from trinity_serve.cli.serve import command as serve_command
from trinity_serve.config import APPLICATION_IMPORT_PATH

Section = dict[str, object]

POOL_KEYS = ("num_shards", "num_replicas")
"""Of experts: what may change while serving, and stands at the pool in a Serve file."""


@contextmanager
def endpoint(options: argparse.Namespace, transport: str) -> Iterator[Target]:
    """Yield a running server, or one started for this with such links."""
    if options.url:
        yield Target(options.url.rstrip("/"), options.pid)
        return
    arguments = [*scale_options(), *shlex.split(options.serve)]
    start = over_tcp if transport == "grpc" else over_unix_sockets
    with _state_on_disk() if options.control_service else nullcontext(), start(arguments) as target:
        yield target


def scale_options() -> list[str]:
    """Return the options of `trinity serve` for the scale of a `Target`."""
    scale = Target("", 0)
    return [
        *("--shards", str(scale.num_shards), "--replicas", str(scale.num_replicas)),
        *("--ranks", str(scale.num_ranks)),
    ]


@contextmanager
def over_unix_sockets(arguments: Sequence[str]) -> Iterator[Target]:
    """Serve with these options of `trinity serve`."""
    with trinity_server(["--mode", "local", "--transport", "unix", *arguments]) as server:
        yield Target(server.url, server.process.pid)


@contextmanager
def over_tcp(arguments: Sequence[str]) -> Iterator[Target]:
    """Serve with these options of `trinity serve`, and with proxies between ranks and shards."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        file = Path(folder) / "ray_config.yaml"
        file.write_text(yaml.safe_dump(serve_file(arguments)))
        command = (sys.executable, "-m", "trinity_serve.cli.main", "serve", str(file))
        # It is ready once ranks reach shards: the proxies have to be there before.
        shards = Victims(os.getpid(), SHARD)
        with (
            TcpDetours(shards) as detours,
            running(ServerCommand(command, "/ready", stop_timeout_s=90.0)) as server,
        ):
            yield Target(server.url, server.process.pid, detours=detours)


def serve_file(arguments: Sequence[str]) -> Section:
    """Return the Serve file that says what the options say, with addresses of its own for links."""
    given = serve_command.make_context("serve", list(arguments)).params
    network: Section = {"bind_host": BIND_HOST, "advertise_host": ADVERTISE_HOST}
    args: dict[str, Section] = {"network": network, "experts": {"transport": "grpc"}}
    for option, (section, key) in OPTION_KEYS.items():
        if given[option] is not None:
            args.setdefault(section, {})[key] = given[option]
    pool = {key: args["experts"].pop(key) for key in POOL_KEYS}
    application: Section = {
        **{"name": "trinity", "route_prefix": "/", "import_path": APPLICATION_IMPORT_PATH},
        **{"external_scaler_enabled": True, "args": args},
        "deployments": [{"name": "ExpertPool", "user_config": pool}],
    }
    http = {"host": BIND_HOST, "port": claim_port(BIND_HOST, 0), "request_timeout_s": 600}
    return {"http_options": http, "applications": [application]}


@contextmanager
def _state_on_disk() -> Iterator[None]:
    """Let a Ray that is started in the block keep its control service's state on disk."""
    with tempfile.TemporaryDirectory(prefix="gcs-") as folder:
        settings = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": folder}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name in settings:
                del os.environ[name]
