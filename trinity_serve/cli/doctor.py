"""`trinity doctor`: what this machine lacks, each with what to do about it."""

from __future__ import annotations

import click

from trinity_serve.cli.findings import Level, examine

MARKS = {Level.OK: "ok  ", Level.NOTE: "note", Level.MISSING: "MISS"}


@click.command("doctor")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to try.")
@click.pass_context
def command(ctx: click.Context, port: int) -> None:
    """Tell what this machine lacks. Exit code 0 when serving works, 1 when something is missing."""
    missing = 0
    for finding in examine(port):
        click.echo(f"{MARKS[finding.level]}  {finding.name:<11} {finding.detail}")
        if finding.remedy:
            click.echo(f"      {'':<11} {finding.remedy}")
        missing += finding.level is Level.MISSING
    ctx.exit(1 if missing else 0)
