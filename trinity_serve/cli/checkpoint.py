"""`trinity checkpoint`: write a synthetic one, or tell what one holds and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from cluster.types import ComputeDtype
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
