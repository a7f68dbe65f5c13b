"""`trinity keys`: make API keys; what is kept of one is its hash."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from pydantic import ValidationError

from trinity_serve.api.keys import append_key, hash_of, new_key, read_key_file
from trinity_serve.config.security import ApiKeyRecord, Scope

DEFAULT_FILE = Path("api-keys.jsonl")


@click.group("keys")
def command() -> None:
    """Make and list API keys (security.api_keys_file)."""


@command.command("new")
@click.option("--name", required=True, help="What logs call it.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(Scope)),
    multiple=True,
    default=("inference",),
    show_default=True,
    help="May be given twice.",
)
@click.option("--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
@click.option("--requests-per-minute", type=click.IntRange(1))
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Prompt and output together.")
@click.option("--max-concurrent-streams", type=click.IntRange(1))
def new(name: str, scopes: tuple[Scope, ...], file: Path, **limits: int | None) -> None:
    """Print a new key, once, and add its hash to FILE. A running server takes it within seconds."""
    key = new_key()
    try:
        record = ApiKeyRecord.model_validate(
            {"name": name, "sha256": hash_of(key), "scopes": scopes, **limits}
        )
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"], param_hint="--name") from error
    append_key(file, record)
    click.echo(key)
    click.echo(f"{file} has the hash of {name}; this key is not shown again.", err=True)


@command.command("list")
@click.option("--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
def list_keys(file: Path) -> None:
    """List the names and scopes in FILE."""
    for record in read_key_file(file):
        click.echo(f"{record.name}  {','.join(record.scopes)}")
