"""`trinity serve` on Ray: start (or join) Ray, deploy, say when it is ready, and leave nothing.

Mode local starts a Ray of its own in a folder of its own and ends exactly that; mode cluster joins
the running one and ends only its application. `ray stop` is never used: it ends every Ray on the
machine.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.serve import Application

from cluster.errors import NotReadyError
from cluster.first_shards import LoadingProgress, start_shards
from cluster.pool_messages import Target
from cluster.shard_launcher import ShardLauncher
from trinity_serve.addresses import LOOPBACK, claim_port, url_of
from trinity_serve.config import ServeConfig
from trinity_serve.processes import descendants, end_processes
from trinity_serve.stopping import Stop, stop_on_signals

logger = logging.getLogger(__name__)

APP_NAME = "trinity"
SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Serve's own name for it: it takes applications before its proxies have started."""
OBJECT_STORE_BYTES = 100_000_000
"""Nothing of ours travels through the object store; this is what Ray itself needs at least."""
POLL_S = 0.1
PROBE_TIMEOUT_S = 2.0
END_TIMEOUT_S = 8.0


def run_application(
    config: ServeConfig,
    assemble: Callable[[ServeConfig], Application],
    on_ready: Callable[[str], None],
    launcher: ShardLauncher,
) -> None:
    """Serve until SIGINT or SIGTERM; all that was started has ended when this returns.

    `assemble` gets `config` with the port that was taken where it says 0. `on_ready` is called with
    the endpoint once `GET /ready` answers 200 there.
    """
    own = config.mode == "local"
    config = _with_port(config) if own else config
    # Of Serve's proxy, which mode local keeps beside the ingress's own port.
    http = {
        "host": LOOPBACK,
        "port": 0,
        "request_timeout_s": config.ingress.request_timeout_s,
    }

    def begin_loading() -> None:
        start_shards(launcher, APP_NAME, target_of(config))

    with stop_on_signals() as stop:
        scope = own_ray(http, stop, begin_loading) if own else _joined_ray()
        with scope as (proxy, starting):
            endpoint = url_of(config.ingress.host, config.ingress.port) if own else proxy
            application = assemble(config)
            target = serve.RunTarget(application, APP_NAME, "/", external_scaler_enabled=True)
            serve.run_many(
                [target],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            if wait_until_ready(APP_NAME, endpoint, starting, stop):
                on_ready(endpoint)
            stop.wait()


def _with_port(config: ServeConfig) -> ServeConfig:
    """Name the port. Raises `ConfigError` for one that is taken."""
    port = claim_port(config.ingress.host, config.ingress.port)
    ingress = config.ingress.model_copy(update={"port": port})
    return config.model_copy(update={"ingress": ingress})


def target_of(config: ServeConfig) -> Target:
    """Return what the pool is to bring about."""
    experts = config.experts
    return Target(experts.num_shards, experts.num_replicas, int(experts.replica_bytes))


@contextmanager
def own_ray(
    http: Mapping[str, object], stop: Stop, begin_loading: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Future[None]]]:
    """Start a Ray for this process alone, and end it with everything it started.

    `http` are Serve's options, host and port among them. `begin_loading` is called once Ray runs,
    before Serve is started. Gives the endpoint, and a future that ends when Serve listens there.
    """
    host, port = str(http["host"]), claim_port(str(http["host"]), int(str(http["port"])))
    folder = Path(tempfile.mkdtemp(prefix="trinity-"))
    try:
        _start_own_ray(folder)
        begin_loading()
        signal.signal(signal.SIGTERM, stop.handle)  # Ray has put its own in its place
        yield url_of(host, port), _start_serve({**http, "port": port})
    finally:
        started = descendants(os.getpid())
        ray.shutdown()
        end_processes(started, END_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _start_serve(http: dict[str, object]) -> Future[None]:
    """Start Serve and return once applications can be deployed; its HTTP proxy takes longer.

    The future ends when the proxy listens, or with what was in the way.
    """
    threads = ThreadPoolExecutor(1, thread_name_prefix="start-serve")
    starting = threads.submit(serve.start, "HeadOnly", http)
    threads.shutdown(wait=False)
    while not starting.done() and not _is_named(SERVE_CONTROLLER, "serve"):
        time.sleep(POLL_S)
    return starting


def _is_named(actor: str, namespace: str) -> bool:
    try:
        ray.get_actor(actor, namespace)
    except ValueError:
        return False
    return True


def _start_own_ray(folder: Path) -> None:
    token_path = folder / "dashboard-token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    # Ray reads these when it starts, and so do all processes it starts: the dashboard's token, and
    # the folder in which sockets are made.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    os.environ["TMPDIR"] = str(folder)
    # On a busy machine Serve's proxy starts in more than the 5 s after which Serve gives it up.
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "30"
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "30"
    # A proxy that has died is replaced after three of these; by default they are 10 s apart.
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "1"
    # Serve's controller looks at every replica each time, ten times a second by default: with few
    # cores that is a percent of them.
    os.environ["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "0.3"
    context = ray.init(
        address="local",
        _temp_dir=str(folder / "ray"),
        _node_ip_address="127.0.0.1",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _say(f"Dashboard: http://{context.dashboard_url}  (token: cat {token_path})")
    _say(f"Logs:      {folder}/ray/session_latest/logs/serve")


@contextmanager
def _joined_ray() -> Iterator[tuple[str, Future[None]]]:
    """Join the cluster this machine belongs to; delete the application at the end."""
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    started: Future[None] = Future()
    started.set_result(None)
    try:
        yield "http://127.0.0.1:8000", started
    finally:
        serve.delete(APP_NAME)
        ray.shutdown()


def wait_until_ready(app: str, endpoint: str, starting: Future[None], stop: Stop) -> bool:
    """Show loading until `/ready` answers 200; return False when stopped before.

    Raises what `starting` ended with.
    """
    with LoadingProgress(app) as progress:
        while not stop.is_set:
            if starting.done():
                starting.result()
            if _is_ready(endpoint):
                return True
            progress.show()
            _raise_if_failed(app)
            time.sleep(POLL_S)
    return False


def _is_ready(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/ready", timeout=PROBE_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _raise_if_failed(app: str) -> None:
    status = serve.status().applications.get(app)
    if status is not None and status.status == "DEPLOY_FAILED":
        reasons = [each.message for each in status.deployments.values() if each.message]
        raise NotReadyError("\n".join([status.message, *reasons]))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
