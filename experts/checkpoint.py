"""The only reader of safetensors files: index, lazy slices, counted bytes. Nothing is unpickled.

D hidden, F expert width.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import CheckpointError
from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
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
from experts.quantised.config import read_quantisation
from experts.quantised.dequantise import NotFiniteError, dequantise
from experts.quantised.layout import StoredLayout
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.reading import read_matrix
from experts.quantised.scheme import Stored
from experts.tensor_names import Shape, expert_names, telltale_matrix, telltale_shapes
from experts.tensor_reader import FileRange, TensorReader

ExpertTensors: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""gate_FD, up_FD, down_DF."""


class Checkpoint:
    """A checkpoint of which only the asked tensors are read. Used by one thread at a time.

    `bytes_read` counts the tensor bytes read. Tensors own their memory. Quantised matrices are
    given dequantised, in the dtype of config.json, unless asked for as they are (`matrix`).
    """

    def __init__(self, files: ModelFiles, config: AfmoeConfig) -> None:
        self.path: Path = files.folder
        self.config = config
        self.layout = StoredLayout(config, read_quantisation(files.folder))
        self.bytes_read = 0
        self._files = files
        self._readers: dict[str, TensorReader] = {}
        self._threads: Executor | None = None
        self._weight_map = self._read_weight_map()
        source = str(self.path / (INDEX_FILE if self.is_indexed else SINGLE_FILE))
        check_names(self._weight_map, *self.layout.names(source), source)
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
        """Return one whole tensor: in the dtype of the file, or dequantised to config.json's.

        `into`, when given, takes it; it is contiguous, of this shape and dtype.

        Raises CheckpointError when it is missing, of another shape or of another dtype than
        config.json's (`expert_bias` may be float32 or bfloat16 in any checkpoint), or when what is
        quantised has scales or weights that are no numbers.
        """
        matrix = self.matrix(name, shape)
        if matrix is None:
            return self.stored(self.layout.plain(name, shape), into)
        if into is None:
            into = torch.empty(shape, dtype=TORCH_DTYPES[self.config.dtype])
        try:
            return dequantise(matrix, into)
        except NotFiniteError as error:
            codes = next(self.layout.parts(name, shape)).name
            found = f"another in row {error.row}"
            raise CheckpointError(self.file_of(codes), codes, "finite weights", found) from error

    def matrix(self, name: str, shape: Shape) -> QuantisedMatrix | None:
        """Return a matrix in its quantised form, checked; None when it is stored as it is.

        Raises CheckpointError as `tensor`.
        """
        scheme = self.layout.scheme_of(name)
        return None if scheme is None else read_matrix(self, name, scheme, shape)

    def stored(self, wanted: Stored, into: Tensor | None = None) -> Tensor:
        """Return one tensor as its file has it, checked against what it may look like."""
        reader = self._reader_of(wanted)
        try:
            tensor = reader.read(wanted.name, into, self._threads)
        except OSError as error:
            path = str(reader.path)
            raise CheckpointError(path, wanted.name, "readable data", str(error)) from error
        self.bytes_read += tensor.nbytes
        return tensor

    def ranges(self, name: str, shape: Shape) -> Iterator[FileRange]:
        """Yield where the tensor's data is; checks the headers and reads no data."""
        for part in self.layout.parts(name, shape):
            header = self._reader_of(part).headers[part.name]
            yield FileRange(self._weight_map[part.name], header.offset, header.nbytes)

    def file_of(self, name: str) -> str:
        """Return the path of the file that holds a stored tensor, or the folder's."""
        return str(self.path / self._weight_map.get(name, ""))

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

    @contextlib.contextmanager
    def reading_side_by_side(self, num_threads: int) -> Iterator[None]:
        """Read large tensors in pieces on so many threads meanwhile."""
        with ThreadPoolExecutor(num_threads, thread_name_prefix="read-piece") as threads:
            self._threads = threads
            try:
                yield
            finally:
                self._threads = None

    def fingerprint(self, dtype: ComputeDtype) -> bytes:
        """Return 16 bytes that two processes must share before a row travels between them.

        Covers what enters the arithmetic: configuration, compute dtype, how weights are quantised,
        and of the weights those small ones that differ between any two training runs. Reads a few
        kilobytes, and one matrix of a quantised checkpoint. Raises CheckpointError.
        """
        digest = hashlib.blake2b(self.config.fingerprint(dtype), digest_size=16)
        for part in self._telltales():
            digest.update(self.stored(part).view(-1).view(torch.uint8).numpy().data)
        if self.layout.quantisation is not None:
            digest.update(self.layout.quantisation.canonical())
        return digest.digest()

    def _telltales(self) -> Iterator[Stored]:
        for name, shape in telltale_shapes(self.config):
            yield self.layout.plain(name, shape)
        # The same model quantised has the same norms and biases: one of its matrices tells.
        name, shape = telltale_matrix(self.config)
        if self.layout.scheme_of(name) is not None:
            yield from self.layout.parts(name, shape)

    def expert_files(self, experts: Iterable[int]) -> list[str]:
        """Return the weight files that hold these experts of any MoE layer: all a shard opens."""
        config = self.config
        shape = (config.moe_intermediate_size, config.hidden_size)
        wanted = tuple(experts)
        names = (
            part.name
            for layer in config.moe_layers
            for expert in wanted
            for name in expert_names(layer, expert)
            for part in self.layout.parts(name, shape)
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

    def _reader_of(self, wanted: Stored) -> TensorReader:
        """Return the reader of the file that holds `wanted`, after checking its header."""
        name = wanted.name
        if name not in self._weight_map:
            raise CheckpointError(str(self.path), name, "a tensor of this name", "none")
        file = self._weight_map[name]
        path = str(self.path / file)
        reader = self._reader(file)
        if name not in reader.headers:
            raise CheckpointError(path, name, "a tensor that the index places here", "none")
        header = reader.headers[name]
        if header.shape not in wanted.shapes:
            expected = " or ".join(f"{list(shape)}" for shape in wanted.shapes)
            raise CheckpointError(path, name, f"shape {expected}", f"{list(header.shape)}")
        if header.dtype not in wanted.dtypes:
            expected = f"dtype {' or '.join(sorted(wanted.dtypes))}"
            raise CheckpointError(path, name, expected, header.dtype)
        return reader

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
