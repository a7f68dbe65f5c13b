"""`trinity check`: every problem of a Serve file, by key, before anything is deployed."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.errors import ConfigError
from experts.hub import ModelFiles
from trinity_serve.config import find_problems, load_serve_config
from trinity_serve.parts.model_files import read_model_config


@click.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def command(ctx: click.Context, file: Path) -> None:
    """Check FILE (a ray_config.yaml) and name each key that is wrong. Exit code 0 or 1.

    Where the model's folder is on this machine too, its configuration is read: a shape or a form of
    weights that is not served is named here. No weights are read.
    """
    problems = find_problems(file) or _model_problems(file)
    for problem in problems:
        click.echo(str(problem))
    if problems:
        ctx.exit(1)
    click.echo(f"{file}: no problem found")


def _model_problems(file: Path) -> list[ConfigError]:
    folder = Path(load_serve_config(file).model.path).expanduser()
    if not folder.is_dir():
        return []
    try:
        read_model_config(ModelFiles(folder))
    except ConfigError as error:
        return [error]
    return []
