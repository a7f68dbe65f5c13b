"""Writes a whole checkpoint folder: weights, index, configuration, tokenizer, chat template."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cluster.errors import CheckpointError, ConfigError
from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype
from experts.tensor_names import tensor_shapes
from trinity_serve.synthetic.hub_json import generation_config, hub_config, write_json
from trinity_serve.synthetic.presets import PRESETS
from trinity_serve.synthetic.shard_files import TensorSpec, file_name, plan_files, write_file
from trinity_serve.synthetic.tokenizer_files import write_tokenizer
from trinity_serve.synthetic.weights import storage_dtype, tensor_chunks

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
) -> Path:
    """Write the checkpoint to the new folder `path` and return it.

    Memory stays at a few tens of MB. The folder is filled under another name beside `path` and
    renamed when whole; an interrupted write leaves nothing. `dtype` defaults to the preset's.

    Raises:
        ConfigError: no such preset.
        CheckpointError: `path` exists already, or the disk has too little room.
    """
    config = _resolve(preset, dtype)
    plan = _Plan.of(config)
    _check_target(path, plan.total_bytes)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_weights(partial, config, plan, seed, progress or _ignore)
        write_json(partial / "config.json", hub_config(config))
        write_json(partial / "generation_config.json", generation_config(config))
        write_tokenizer(partial, config)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


@dataclass(frozen=True, slots=True)
class _Plan:
    files: dict[str, list[TensorSpec]]
    total_bytes: int

    @classmethod
    def of(cls, config: AfmoeConfig) -> _Plan:
        tensors = [
            TensorSpec(name, shape, storage_dtype(name, config.dtype))
            for name, shape in tensor_shapes(config)
        ]
        total = sum(tensor.nbytes for tensor in tensors)
        files = plan_files(tensors, min(_MAX_FILE_BYTES, -(-total // _MIN_FILES)))
        names = (file_name(index, len(files)) for index in range(len(files)))
        return cls(dict(zip(names, files, strict=True)), total)


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


def _write_weights(
    folder: Path, config: AfmoeConfig, plan: _Plan, seed: int, progress: Progress
) -> None:
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, plan.total_bytes)

    def pieces(tensor: TensorSpec) -> Iterator[Tensor]:
        return tensor_chunks(tensor.name, tensor.shape, config, seed, config.dtype)

    for name, tensors in plan.files.items():
        write_file(folder / name, tensors, pieces, written)
    weight_map = {tensor.name: name for name, tensors in plan.files.items() for tensor in tensors}
    index = {
        "metadata": {"total_size": plan.total_bytes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(folder / "model.safetensors.index.json", index)


def _ignore(written_bytes: int, total_bytes: int) -> None:
    """The progress callback of a caller who wants none."""
