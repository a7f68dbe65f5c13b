"""`trinity scale`: another number of shards, copies or ranks, while serving."""

from __future__ import annotations

import time

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from trinity_serve.cli.admin import AdminClient
from trinity_serve.cli.endpoint import EndpointError
from trinity_serve.cli.status import DEFAULT_URL

POLL_S = 0.5
ENDED = {"done": 0, "rolled_back": 1}
"""Exit code by the phase an operation ends in."""


@click.command("scale")
@click.option("--shards", type=click.IntRange(1), help="How many expert shards there shall be.")
@click.option("--replicas", type=click.IntRange(1), help="Copies of each expert.")
@click.option("--replica-bytes", metavar="SIZE", help="For one copy more of the busiest, as 2GiB.")
@click.option("--ranks", type=click.IntRange(1), help="How many attention ranks there shall be.")
@click.option("--auto", is_flag=True, help="Return to what the configuration says.")
@click.option("--operation", "operation_id", help="Name of the operation; again asks after it.")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The server, on this machine.")
@click.option("--token-file", help="The server's token file.  [default: as the server says]")
@click.option("--api-key", envvar="TRINITY_API_KEY", show_envvar=True, help="Of scope admin.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
def command(
    url: str,
    token_file: str | None,
    api_key: str | None,
    timeout_s: float,
    no_wait: bool,
    replica_bytes: str | None,
    **asked: object,
) -> int:
    """Change how many shards, copies or ranks serve, and wait for it.

    Requests go on meanwhile and their outputs stay what they are. Exit code 1: it failed, and what
    was before is back.
    """
    wanted = {key: value for key, value in asked.items() if value}
    if replica_bytes is not None:
        wanted["replica_bytes"] = _num_bytes(replica_bytes)
    client = AdminClient(url, token_file, api_key)
    operation = client.scale(wanted)
    if no_wait or not operation:
        click.echo(f"operation {operation['operation_id']}" if operation else "ranks: asked for")
        return 0
    return _wait(client, str(operation["operation_id"]), time.monotonic() + timeout_s)


def _num_bytes(text: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise click.BadParameter(f"{text!r} is no size; give bytes, or as 2GiB") from error


def _wait(client: AdminClient, operation_id: str, until_s: float) -> int:
    last = ""
    while time.monotonic() < until_s:
        match client.status()["operation"]:
            case {"operation_id": str(name), "phase": str(phase), "error": str(error)}:
                if name != operation_id:
                    by = name or "the configuration"
                    raise EndpointError(f"operation {operation_id} was replaced by {by}")
                if phase != last:
                    click.echo(phase + (f": {error}" if error else ""))
                    last = phase
                if phase in ENDED:
                    return ENDED[phase]
        time.sleep(POLL_S)
    raise EndpointError(f"operation {operation_id} goes on; the wait for it ended in {last!r}")
