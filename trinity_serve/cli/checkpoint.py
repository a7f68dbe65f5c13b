"""`trinity checkpoint`: write a synthetic one, or tell what one holds and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from cluster.types import ComputeDtype
from experts.checkpoint import Checkpoint
from experts.dry_run import plan_loads
from experts.quantised.scheme import Form
from trinity_serve.cli.sizes import description_lines, load_lines, stored_line
from trinity_serve.model.describe import describe
from trinity_serve.synthetic import PRESETS, Recipe, write_checkpoint, write_checkpoint_outline


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
@click.option(
    "--quantised", type=click.Choice([form.value for form in Form]), help="A published form."
)
@click.option(
    "--outline", is_flag=True, help="Headers and sizes without weights, for dry runs: no room."
)
def write(
    preset: str,
    path: Path,
    seed: int,
    dtype: ComputeDtype | None,
    quantised: str | None,
    outline: bool,
) -> None:
    """Write a seeded synthetic checkpoint of shape PRESET into the new folder PATH."""
    recipe = None if quantised is None else Recipe(Form(quantised))
    if outline:
        if seed or dtype is not None:
            raise click.UsageError("--outline has no weights: without --seed and --dtype")
        write_checkpoint_outline(preset, path, recipe)
        return
    with tqdm(desc=f"Writing {path}", unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(written_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(written_bytes - bar.n)

        write_checkpoint(preset, path, seed=seed, dtype=dtype, progress=show, recipe=recipe)


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
    checkpoint = Checkpoint.open(model)
    config = checkpoint.config
    described = describe(config, shard_counts=range(1, config.num_experts + 1))
    for line in description_lines(model, described, memory_gib):
        click.echo(line)
    if checkpoint.layout.quantisation is not None:
        click.echo(stored_line(checkpoint.layout))


@command.command("dry-run")
@click.argument("model", metavar="PATH")
@click.option("--shards", type=click.IntRange(min=1), required=True)
@click.option(
    "--memory", "memory_gib", type=click.FloatRange(min=0, min_open=True), help="GiB per shard."
)
def dry_run(model: str, shards: int, memory_gib: float | None) -> None:
    """Check what each of so many shards would read of folder PATH and hold, reading no weights.

    Every expert is loaded by the shard that is asked for it and by no other, every range lies in
    its file and in no other range, and what a shard holds fits its memory.
    """
    limit_bytes = None if memory_gib is None else round(memory_gib * 2**30)
    for line in load_lines(plan_loads(Checkpoint.open(model), shards, limit_bytes)):
        click.echo(line)
