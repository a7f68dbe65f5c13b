"""`trinity checkpoint`: write a synthetic one, or tell what one holds and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from cluster.types import ComputeDtype
from experts.checkpoint import Checkpoint
from trinity_serve.cli.sizes import description_lines
from trinity_serve.model.describe import describe
from trinity_serve.synthetic import PRESETS, write_checkpoint


@click.group("checkpoint")
def command() -> None:
    """Write or inspect a checkpoint in the Hub's layout."""


@command.command("write")
@click.argument("preset", type=click.Choice(list(PRESETS)))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--dtype", type=click.Choice(get_args(ComputeDtype)), help="[default: what the preset has]"
)
def write(preset: str, path: Path, seed: int, dtype: ComputeDtype | None) -> None:
    """Write a seeded synthetic checkpoint of shape PRESET into the new folder PATH."""
    with tqdm(desc=f"Writing {path}", unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(written_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(written_bytes - bar.n)

        write_checkpoint(preset, path, seed=seed, dtype=dtype, progress=show)


@command.command("inspect")
@click.argument("model", metavar="PATH")
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="GiB that one shard may hold, for the count of shards.",
)
def inspect(model: str, memory_gib: float) -> None:
    """Tell sizes, layers, experts and what fits where, for folder or Hub id PATH.

    Only configuration and names are read, no weights.
    """
    config = Checkpoint.open(model).config
    described = describe(config, shard_counts=range(1, config.num_experts + 1))
    for line in description_lines(model, described, memory_gib):
        click.echo(line)
