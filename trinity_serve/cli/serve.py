"""`trinity serve`: options or a Serve file in, and the server of the chosen mode run."""

from __future__ import annotations

import importlib
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, get_args

import click
from click.core import ParameterSource

from trinity_serve.api.keys import records_of
from trinity_serve.config import (
    ApiKeyRecord,
    KernelName,
    Mode,
    ServeConfig,
    TransportName,
    check_ray_config,
    find_problems,
    parse_serve_args,
)

# One plug-in per mode: the inline server must start without importing Ray, and Ray's without
# building an engine in this process.
RUNNERS: Mapping[Mode, tuple[str, str]] = {
    "inline": ("trinity_serve.inline", "serve_inline"),
    "local": ("trinity_serve.app", "serve_on_ray"),
    "cluster": ("trinity_serve.app", "serve_on_ray"),
}


class ReadyCallback(Protocol):
    """Called once with the endpoint's URL, when `GET /ready` answers 200 there."""

    def __call__(self, endpoint: str, /) -> None: ...  # noqa: D102


class Runner(Protocol):
    """Serves until SIGINT or SIGTERM, and has ended all it started when it returns."""

    def __call__(self, config: ServeConfig, *, on_ready: ReadyCallback) -> None: ...  # noqa: D102


class FileRunner(Protocol):
    """Serves a checked Serve file as a `Runner` does: on its own Ray, or at the address."""

    def __call__(  # noqa: D102
        self, path: Path, *, address: str | None, on_ready: ReadyCallback
    ) -> None: ...


Option = str | int | tuple[ApiKeyRecord, ...] | None
SERVE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

# Option name -> the key of ServeConfig that it sets.
OPTION_KEYS = {
    "model": ("model", "path"),
    "served_model_name": ("model", "served_name"),
    "dtype": ("model", "dtype"),
    "kernels": ("model", "kernels"),
    "max_model_len": ("model", "max_model_len"),
    "shards": ("experts", "num_shards"),
    "replicas": ("experts", "num_replicas"),
    "ranks": ("attention", "num_replicas"),
    "transport": ("experts", "transport"),
    "max_num_seqs": ("attention", "max_num_seqs"),
    "max_waiting": ("attention", "max_waiting"),
    "kv_memory": ("attention", "kv_memory_bytes"),
    "threads": ("attention", "num_threads"),
    "host": ("ingress", "host"),
    "port": ("ingress", "port"),
    "root_path": ("ingress", "root_path"),
    "tls_cert_file": ("ingress", "tls_cert_file"),
    "tls_key_file": ("ingress", "tls_key_file"),
    "api_keys_file": ("security", "api_keys_file"),
    "api_keys": ("security", "api_keys"),
    "traces": ("observability", "traces"),
    "allow_unauthenticated_network_access": (
        "security",
        "allow_unauthenticated_network_access",
    ),
}


def config_from_options(mode: Mode, options: Mapping[str, object]) -> ServeConfig:
    """Build the configuration; an option that is None keeps its key's default.

    Raises ConfigError naming the key, its value and what is supported.
    """
    sections: dict[str, dict[str, object]] = {}
    for option, value in options.items():
        if value is not None:
            section, key = OPTION_KEYS[option]
            sections.setdefault(section, {})[key] = value
    return parse_serve_args({"mode": mode, **sections}, source="trinity serve")


def ready_text(endpoint: str, model: str) -> str:
    """Return what is printed when the server is ready: endpoint, and a curl line that works."""
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 32})
    return (
        f"Ready: {endpoint}/v1 serves {model}. Ctrl-C ends it.\n"
        f"Look at it: {endpoint}/ (or trinity chat), or try:\n"
        f"  curl {endpoint}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)}\n"
    )


def records_from_environment(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[ApiKeyRecord, ...] | None:
    """Return the records of keys that the environment has; only hashes go further.

    On a command line they are refused: every user of the machine can read it.
    """
    if value is None:
        return None
    if ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE:
        raise click.UsageError("Keys on a command line are seen by all: use TRINITY_API_KEYS.")
    return records_of(value)


@click.command("serve")
@click.argument("file", required=False, type=SERVE_FILE)
@click.option("--config", type=SERVE_FILE, help="The same as FILE.")
@click.option("--address", help="Serve FILE on this running cluster: HOST:PORT, or auto.")
@click.option("--model", metavar="PATH", help="Checkpoint folder or Hub id.")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="inline", show_default=True)
@click.option("--shards", type=int, help="Expert shards.  [default: 4; inline 1]")
@click.option("--replicas", type=int, help="Copies of each expert, on different shards.")
@click.option("--ranks", type=int, help="Attention ranks.  [default: 1]")
@click.option(
    "--transport",
    type=click.Choice(get_args(TransportName)),
    help="Between ranks and shards.  [default: auto]",
)
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]))
@click.option("--kernels", type=click.Choice(get_args(KernelName)))
@click.option("--traces", help="OTLP/HTTP receiver of traces: http://127.0.0.1:4318.")
@click.option("--host", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0 takes a free one.  [default: 8000]")
@click.option("--root-path", help="Prefix that a reverse proxy shows it below: /llm.")
@click.option("--served-model-name", help="Name that clients ask for.  [default: PATH's last part]")
@click.option("--max-model-len", type=int, help="Longest prompt plus output, in tokens.")
@click.option("--max-num-seqs", type=int, help="Sequences that run at once.  [default: 64]")
@click.option("--max-waiting", type=int, help="Choices that wait before 429.  [default: 256]")
@click.option("--threads", type=int, help="Kernel threads of a rank.  [default: every core]")
@click.option("--kv-memory", metavar="SIZE", help="Memory for K and V.  [default: 512MiB]")
@click.option("--tls-cert-file", help="PEM file of HTTPS; inline only.")
@click.option("--tls-key-file", help="Its key.")
@click.option("--api-keys-file", help="Keys that callers must have, of `trinity keys new`.")
@click.option(
    "--api-keys",
    envvar="TRINITY_API_KEYS",
    show_envvar=True,
    callback=records_from_environment,
    help="Keys themselves, NAME=KEY or NAME:admin=KEY with commas between; by the variable only.",
)
@click.option(
    "--allow-unauthenticated-network-access",
    is_flag=True,
    default=None,
    help="Answer other machines although there are no API keys.",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    file: Path | None,
    config: Path | None,
    address: str | None,
    mode: Mode,
    **options: Option,
) -> None:
    """Serve a checkpoint over HTTP until Ctrl-C or SIGTERM.

    Modes: inline is one process without Ray; local starts a Ray of its own on this machine;
    cluster joins a running one.

    With FILE, a ray_config.yaml, all is as it says there: on a Ray of its own, or on a running
    cluster with --address, as `serve deploy FILE` would; Ctrl-C deletes it there again.
    """
    given = [name for name, value in options.items() if value is not None]
    if ctx.get_parameter_source("mode") is not ParameterSource.DEFAULT:
        given.append("mode")
    source = chosen_source(file, config, address, given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if source is None:
        _serve_options(mode, options)
    else:
        _serve_file(ctx, source, address)


def chosen_source(
    file: Path | None, config: Path | None, address: str | None, given: Sequence[str]
) -> Path | None:
    """Return the Serve file to serve, or None where the options say what is served.

    `given` are the options with a value. Raises `click.UsageError` for what does not go together.
    """
    if file is not None and config is not None:
        raise click.UsageError(f"Two files: {file} and --config {config}. Give one of them.")
    source = file or config
    names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if source is not None and given:
        raise click.UsageError(
            f"{source} says all there is to say: change it there, without {names}."
        )
    if source is None and address is not None:
        raise click.UsageError(
            "--address is for a Serve file: trinity serve FILE --address HOST:PORT."
        )
    if source is None and "model" not in given:
        raise click.UsageError("Say what is to be served: --model PATH, or a ray_config.yaml.")
    return source


def _serve_options(mode: Mode, options: Mapping[str, Option]) -> None:
    config = config_from_options(mode, options)
    module, function = RUNNERS[mode]
    run: Runner = getattr(importlib.import_module(module), function)
    click.echo(f"Loading {config.model.path}", err=True)
    run(config, on_ready=lambda url: click.echo(ready_text(url, config.model.public_name)))


def _serve_file(ctx: click.Context, file: Path, address: str | None) -> None:
    if problems := find_problems(file):
        for problem in problems:
            click.echo(str(problem), err=True)
        ctx.exit(1)
    model = check_ray_config(file).model
    run: FileRunner = importlib.import_module("trinity_serve.file_on_ray").serve_file
    click.echo(f"Loading {model.path}", err=True)
    run(
        file,
        address=address,
        on_ready=lambda url: click.echo(ready_text(url, model.public_name)),
    )
