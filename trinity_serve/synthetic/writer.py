"""Writes a whole checkpoint folder: weights, index, configuration, tokenizer, chat template."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.errors import CheckpointError, ConfigError
from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype
from experts.quantised.config import MODELOPT_FILE, parse_quantisation
from experts.quantised.layout import StoredLayout
from trinity_serve.synthetic.hub_json import generation_config, hub_config, write_json
from trinity_serve.synthetic.presets import PRESETS
from trinity_serve.synthetic.recipe import Recipe, hf_quant_config, quantization_config
from trinity_serve.synthetic.shard_files import (
    TensorSpec,
    file_name,
    plan_files,
    write_file,
    write_outline,
)
from trinity_serve.synthetic.stored_weights import StoredWeights
from trinity_serve.synthetic.tokenizer_files import write_tokenizer

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) as tensor data goes to disk."""

_MAX_FILE_BYTES = 5_000_000_000
_MIN_FILES = 4
"""Even a small checkpoint is spread over files, so that its readers are tested with an index."""


def write_checkpoint(
    preset: str | AfmoeConfig,
    path: Path,
    seed: int = 0,
    dtype: ComputeDtype | None = None,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Write the checkpoint to the new folder `path` and return it.

    Memory stays at a few tens of MB, or at some times the largest matrix with a `recipe`, which
    tells how to quantise. The folder is filled under another name beside `path` and renamed when
    whole; an interrupted write leaves nothing. `dtype` defaults to the preset's.

    Raises:
        ConfigError: no such preset, or one that cannot be quantised so.
        CheckpointError: `path` exists already, or the disk has too little room.
    """
    plan = _Plan.of(_resolve(preset, dtype), seed, recipe)
    _check_target(path, plan.total_bytes)
    report = progress or _ignore
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report(done, plan.total_bytes)

    def write_weights(file: Path, tensors: list[TensorSpec]) -> None:
        write_file(file, tensors, plan.weights.pieces, written)

    return plan.write(path, write_weights)


def write_checkpoint_outline(
    preset: str | AfmoeConfig, path: Path, recipe: Recipe | None = None
) -> Path:
    """Write a checkpoint without weights: each file has its header, its length, and a hole.

    Names, shapes, places and sizes are real, and it takes next to no room. For dry runs; what is
    read of its weights is zeros. Raises as `write_checkpoint`.
    """
    plan = _Plan.of(_resolve(preset, None), 0, recipe)
    _check_target(path, 0)
    return plan.write(path, write_outline)


@dataclass(frozen=True)
class _Plan:
    config: AfmoeConfig
    content: Mapping[str, object]
    """Of config.json."""
    weights: StoredWeights
    files: Mapping[str, list[TensorSpec]]
    total_bytes: int

    @classmethod
    def of(cls, config: AfmoeConfig, seed: int, recipe: Recipe | None) -> _Plan:
        content, quantisation = hub_config(config), None
        if recipe is not None:
            content["quantization_config"] = quantization_config(recipe, config)
            quantisation = parse_quantisation(content, "synthetic checkpoint")
        layout = StoredLayout(config, quantisation)
        layout.names("synthetic checkpoint")
        scale_dtype = "BF16" if recipe is None else recipe.scale_dtype
        weights = StoredWeights(config, layout, seed, scale_dtype)
        total = sum(tensor.nbytes for tensor in weights.specs)
        files = plan_files(weights.specs, min(_MAX_FILE_BYTES, -(-total // _MIN_FILES)))
        names = (file_name(index, len(files)) for index in range(len(files)))
        return cls(config, content, weights, dict(zip(names, files, strict=True)), total)

    def write(self, path: Path, write_weights: Callable[[Path, list[TensorSpec]], None]) -> Path:
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            for name, tensors in self.files.items():
                write_weights(partial / name, tensors)
            self._write_index(partial)
            self._write_configuration(partial)
            write_tokenizer(partial, self.config)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def _write_index(self, folder: Path) -> None:
        weight_map = {
            tensor.name: name for name, tensors in self.files.items() for tensor in tensors
        }
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(folder / "model.safetensors.index.json", index)

    def _write_configuration(self, folder: Path) -> None:
        write_json(folder / "config.json", self.content)
        write_json(folder / "generation_config.json", generation_config(self.config))
        block = self.content.get("quantization_config")
        if isinstance(block, Mapping) and block["quant_method"] == "modelopt":
            write_json(folder / MODELOPT_FILE, hf_quant_config(block))


def _resolve(preset: str | AfmoeConfig, dtype: ComputeDtype | None) -> AfmoeConfig:
    if isinstance(preset, str):
        if preset not in PRESETS:
            problem = f"is {preset!r}"
            raise ConfigError("synthetic checkpoint", "preset", problem, ", ".join(PRESETS))
        preset = PRESETS[preset]
    return preset if dtype is None else replace(preset, dtype=dtype)


def _check_target(path: Path, total_bytes: int) -> None:
    if path.exists():
        raise CheckpointError(str(path), "", "a path where nothing is yet", "something there")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = free_bytes(existing)
    if free < total_bytes:
        expected = f"{total_bytes / 1e9:.1f} GB of free disk"
        raise CheckpointError(str(path), "", expected, f"{free / 1e9:.1f} GB")


def free_bytes(folder: Path) -> int:
    """Return how much the file system of `folder` can still take."""
    return shutil.disk_usage(folder).free


def _ignore(written_bytes: int, total_bytes: int) -> None:
    """The progress callback of a caller who wants none."""
