"""`trinity status`: the shards of a running server, what moves, and what went wrong lately."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from trinity_serve.cli.admin import AdminClient, Answer

DEFAULT_URL = "http://127.0.0.1:8000"


def lines_of(status: Answer) -> Iterator[str]:
    """Yield the text for people."""
    lost = f"NOT EVERY EXPERT COVERED ({status['num_uncovered']} are not)"
    covered = "every expert covered" if status["covered"] else lost
    yield f"{status['summary']}, {covered}, placement {status['placement']}"
    match status["target"], status["configured"]:
        case {"num_shards": wanted, "num_replicas": copies}, {"num_shards": configured}:
            yield f"wanted: {wanted} shards ({configured} configured), {copies} copies each"
    yield f"moves: {status['num_loads_left']} experts to load, {status['num_frees_left']} to free"
    yield f"for load: {status['num_moved_for_load']} moved, {status['num_spares']} further copies"
    spare = ", a warm process waits for a lost slice" if status["has_spare"] else ""
    yield f"attention ranks: {status['num_ranks']}{spare}"
    match status["operation"]:
        case {"operation_id": name, "phase": phase, "error": error}:
            yield f"operation {name}: {phase}" + (f" ({error})" if error else "")
    yield from _shards(status["shards"])
    yield from _failures(status["failures"])


def _shards(shards: object) -> Iterator[str]:
    for shard in shards if isinstance(shards, list) else []:
        held = f"{shard['num_experts_held']} of {shard['num_experts_planned']} experts"
        where = "/".join(part for part in (shard["label"], shard["node"][:12]) if part)
        name = f"shard {shard['shard']}.{shard['incarnation']}"
        yield f"  {name}  {shard['state']:9}  {held}  {where}"


def _failures(failures: object) -> Iterator[str]:
    for each in failures if isinstance(failures, list) else []:
        who = f"shard {each['shard']}.{each['incarnation']}"
        yield f"  {each['seconds_ago']:g} s ago: {who}: {each['reason']}"


@click.command("status")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The server, on this machine.")
@click.option("--token-file", help="The server's token file.  [default: as the server says]")
@click.option("--api-key", envvar="TRINITY_API_KEY", show_envvar=True, help="Of scope admin.")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /v1/cluster answers.")
def command(url: str, token_file: str | None, api_key: str | None, as_json: bool) -> int:
    """Show the shards of a running server. Exit code 1 when an expert is not covered."""
    status = AdminClient(url, token_file, api_key).status()
    click.echo(json.dumps(status, indent=2) if as_json else "\n".join(lines_of(status)))
    return 0 if status["covered"] else 1
