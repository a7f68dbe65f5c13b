"""The only reader of safetensors files: index, lazy slices, counted bytes. Nothing is unpickled.

D hidden, F expert width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import CheckpointError
from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype
from experts.checkpoint_index import (
    INDEX_FILE,
    SINGLE_FILE,
    check_names,
    group_by_file,
    no_weights_error,
    read_weight_map,
)
from experts.hub import ModelFiles
from experts.tensor_names import Shape, expert_names, telltale_shapes, tensor_shapes
from experts.tensor_reader import TensorHeader, TensorReader

ExpertTensors: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""gate_FD, up_FD, down_DF."""

_FILE_DTYPES: dict[ComputeDtype, str] = {"float32": "F32", "bfloat16": "BF16"}


class Checkpoint:
    """A checkpoint of which only the asked tensors are read. Used by one thread at a time.

    `bytes_read` counts the tensor bytes read. Tensors own their memory.
    """

    def __init__(self, files: ModelFiles, config: AfmoeConfig) -> None:
        self.path: Path = files.folder
        self.config = config
        self.bytes_read = 0
        self._files = files
        self._readers: dict[str, TensorReader] = {}
        self._weight_map = self._read_weight_map()
        source = self.path / (INDEX_FILE if self.is_indexed else SINGLE_FILE)
        expected = (name for name, _ in tensor_shapes(config))
        check_names(self._weight_map, expected, str(source))
        self._check_files_exist()

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Open a local folder or a Hub id: reads configuration and names, no tensor.

        Of a Hub id only the small files are fetched here, each weight file when first needed.

        Raises:
            ConfigError: config.json is missing, incomplete or not supported.
            CheckpointError: a file or tensor is missing, misnamed or damaged.
            ModelDownloadError: the Hub cannot give the files.
        """
        files = ModelFiles.locate(model)
        return cls(files, AfmoeConfig.from_json(files.folder / "config.json"))

    @property
    def is_indexed(self) -> bool:
        """Whether tensors are spread over files by an index (a single file wins, as in HF)."""
        return not (self.path / SINGLE_FILE).exists() and (self.path / INDEX_FILE).exists()

    def tensor(self, name: str, shape: Shape, into: Tensor | None = None) -> Tensor:
        """Return one whole tensor in the dtype of the file, after checking its header.

        `into`, when given, takes it; it has this shape and the checkpoint's dtype.

        Raises CheckpointError when it is missing, of another shape or of another dtype than
        config.json's (`expert_bias` may be float32 or bfloat16 in any checkpoint).
        """
        if name not in self._weight_map:
            raise CheckpointError(str(self.path), name, "a tensor of this name", "none")
        file = self._weight_map[name]
        path = str(self.path / file)
        reader = self._reader(file)
        if name not in reader.headers:
            raise CheckpointError(path, name, "a tensor that the index places here", "none")
        self._check_header(path, name, shape, reader.headers[name])
        try:
            tensor = reader.read(name, into)
        except OSError as error:
            raise CheckpointError(path, name, "readable data", str(error)) from error
        self.bytes_read += tensor.nbytes
        return tensor

    def expert(self, layer: int, expert: int, into: ExpertTensors | None = None) -> ExpertTensors:
        """Return gate (F, D), up (F, D) and down (D, F) of one expert of absolute layer `layer`.

        `into` are three such tensors to be overwritten: fresh memory costs more than reading.
        """
        into_gate, into_up, into_down = into or (None, None, None)
        hidden, width = self.config.hidden_size, self.config.moe_intermediate_size
        gate, up, down = expert_names(layer, expert)
        return (
            self.tensor(gate, (width, hidden), into_gate),
            self.tensor(up, (width, hidden), into_up),
            self.tensor(down, (hidden, width), into_down),
        )

    def fingerprint(self, dtype: ComputeDtype) -> bytes:
        """Return 16 bytes that two processes must share before a row travels between them.

        Covers what enters the arithmetic: configuration, compute dtype, and of the weights those
        small ones that differ between any two training runs. Reads a few kilobytes.
        Raises CheckpointError.
        """
        digest = hashlib.blake2b(self.config.fingerprint(dtype), digest_size=16)
        for name, shape in telltale_shapes(self.config):
            digest.update(self.tensor(name, shape).view(torch.uint8).numpy().data)
        return digest.digest()

    def expert_files(self, experts: Iterable[int]) -> list[str]:
        """Return the weight files that hold these experts of any MoE layer: all a shard opens."""
        wanted = tuple(experts)
        names = (
            name
            for layer in self.config.moe_layers
            for expert in wanted
            for name in expert_names(layer, expert)
        )
        return list(group_by_file(names, self._weight_map))

    def _read_weight_map(self) -> dict[str, str]:
        if self.is_indexed:
            return read_weight_map(self.path / INDEX_FILE)
        if not self._files.weights(SINGLE_FILE).exists():
            raise no_weights_error(self.path)
        return dict.fromkeys(self._reader(SINGLE_FILE).headers, SINGLE_FILE)

    def _check_files_exist(self) -> None:
        """Local folders are whole; a Hub snapshot fills up as files are asked for."""
        if self._files.hub_id is not None:
            return
        for file, names in group_by_file(self._weight_map, self._weight_map).items():
            if not (self.path / file).exists():
                path = str(self.path / file)
                raise CheckpointError(path, names[0], "the file that the index names", "no file")

    def _reader(self, file: str) -> TensorReader:
        if file not in self._readers:
            path = self._files.weights(file)
            try:
                # Only for its checks of the header against the file's length.
                safe_open(path, framework="pt")
                self._readers[file] = TensorReader(path)
            except (SafetensorError, OSError) as error:
                problem = f"a damaged or truncated one ({error})"
                raise CheckpointError(str(path), "", "a safetensors file", problem) from error
        return self._readers[file]

    def _check_header(self, path: str, name: str, shape: Shape, header: TensorHeader) -> None:
        if header.shape != shape:
            raise CheckpointError(path, name, f"shape {list(shape)}", f"{list(header.shape)}")
        allowed = {_FILE_DTYPES[self.config.dtype]}
        if name.endswith(".expert_bias"):
            allowed = set(_FILE_DTYPES.values())
        if header.dtype not in allowed:
            expected = f"dtype {' or '.join(sorted(allowed))}"
            raise CheckpointError(path, name, expected, header.dtype)
