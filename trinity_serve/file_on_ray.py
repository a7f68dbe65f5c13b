"""`trinity serve FILE`: a Serve file deployed as `serve deploy` does it, watched and ended.

Without an address on a Ray of its own, with one on that running cluster. Serve gets the file itself
and builds the application on the cluster, so that `serve status` and `serve config` tell of it and
a later `serve deploy` of a changed file changes just that.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cluster.errors import ConfigError, NotReadyError
from trinity_serve.addresses import url_of
from trinity_serve.config import check_ray_config
from trinity_serve.local_ray import own_ray, wait_until_ready
from trinity_serve.stopping import stop_on_signals

# YAML as read, checked before by `check_ray_config`.
Raw = dict[str, Any]

ANY_HOST = {"0.0.0.0", "::", ""}
"""To be compared with: an endpoint needs a host that can be connected to."""


def serve_file(path: Path, *, address: str | None, on_ready: Callable[[str], None]) -> None:
    """Serve the file until SIGINT or SIGTERM; what was started for it has ended when this returns.

    `address` is a running cluster's, as `ray start` prints it, or ``auto``; None starts a Ray for
    this file alone. `on_ready` is called with the endpoint once `GET /ready` answers 200 there.
    Raises `ConfigError` for a wrong file, and for a right one that cannot be served this way.
    """
    check_ray_config(path)
    raw: Raw = yaml.safe_load(path.read_text())
    if raw.get("proxy_location") == "Disabled":
        raise ConfigError(str(path), "proxy_location", "Disabled: nothing would answer", "HeadOnly")
    if address is None:
        raw = fitted_to_one_machine(raw, str(path))
    (app,) = raw["applications"]
    http = {"host": "127.0.0.1", "port": 8000, **raw.get("http_options", {})}
    with stop_on_signals() as stop:
        scope = own_ray(http, stop) if address is None else _joined_ray(address, raw, http)
        with scope as (base, starting):
            _serve_client().deploy_apps(ServeDeploySchema.model_validate(raw))
            endpoint = base + app.get("route_prefix", "/").rstrip("/")
            if wait_until_ready(app["name"], endpoint, starting, stop):
                on_ready(endpoint)
            stop.wait()


def fitted_to_one_machine(raw: Raw, source: str) -> Raw:
    """Return the file as one machine can run it: nothing is reserved, a local path is absolute.

    Raises `ConfigError` for what only a cluster can give.
    """
    raw = copy.deepcopy(raw)
    if raw.get("controller_options"):
        supported = "leave it out, or serve on a cluster: --address"
        raise ConfigError(source, "controller_options", "not taken by a Ray of its own", supported)
    args = raw["applications"][0]["args"]
    for section in ("attention", "experts", "ingress"):
        resources = args.setdefault(section, {}).setdefault("resources", {})
        if resources.get("labels"):
            key = f"applications[0].args.{section}.resources.labels"
            problem = f"{resources['labels']} names nodes, and a Ray of its own has one without"
            supported = "leave it out, or serve on a cluster: --address"
            raise ConfigError(source, key, problem, supported)
        # With one machine for all of it a reservation could only keep processes from starting.
        resources["num_cpus"] = 0
    path = Path(args["model"]["path"])
    if path.exists():
        args["model"]["path"] = str(path.resolve())
    return raw


@contextmanager
def _joined_ray(address: str, raw: Raw, http: Raw) -> Iterator[tuple[str, Future[None]]]:
    """Join the cluster and start Serve where it does not run; delete the application at the end."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise NotReadyError(f"no Ray cluster is reached at {address}: {reason}") from error
    started: Future[None] = Future()
    started.set_result(None)
    try:
        serve.start(
            raw.get("proxy_location", "EveryNode"),
            http,
            controller_options=raw.get("controller_options"),
        )
        yield _endpoint(http), started
    finally:
        serve.delete(raw["applications"][0]["name"])
        ray.shutdown()


def _endpoint(http: Raw) -> str:
    """Return where Serve listens. Raises `ConfigError` when that is not where the file says."""
    running = _serve_client().http_config
    if running.port != http["port"]:
        problem = f"{http['port']}, but the Serve that runs there listens on {running.port}"
        supported = f"{running.port}, or `serve shutdown` first"
        raise ConfigError("the Serve file", "http_options.port", problem, supported)
    host = running.host or ""
    return url_of("127.0.0.1" if host in ANY_HOST else host, running.port)


def _serve_client() -> Any:  # noqa: ANN401  # Serve's client, which has no public type
    """Return Serve's client: what its own command line deploys files with."""
    return _get_global_client()
