"""`trinity check`: every problem of a Serve file, by key, before anything is deployed."""

from __future__ import annotations

from pathlib import Path

import click

from trinity_serve.config import find_problems


@click.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def command(ctx: click.Context, file: Path) -> None:
    """Check FILE (a ray_config.yaml) and name each key that is wrong. Exit code 0 or 1."""
    problems = find_problems(file)
    for problem in problems:
        click.echo(str(problem))
    if problems:
        ctx.exit(1)
    click.echo(f"{file}: no problem found")
