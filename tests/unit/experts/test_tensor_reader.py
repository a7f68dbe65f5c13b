"""Tensors read in pieces side by side are those read at once, and fail as they do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import torch
from safetensors.torch import save_file

from experts import tensor_reader
from experts.tensor_reader import TensorReader

P = ParamSpec("P")
T = TypeVar("T")

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.int32,
    torch.int64,
    torch.uint8,
)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture
def pieces_of_100_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_reader, "PIECE_BYTES", 100)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tensor of each dtype, 37 × 5 arbitrary bytes items each, and one number."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for dtype in DTYPES:
        shape = (37, 5 * dtype.itemsize)
        raw = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        tensors[str(dtype)] = raw.view(dtype)
    tensors["number"] = torch.tensor(2.5)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.usefixtures("pieces_of_100_bytes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_make_up_the_tensor(
    file: Path, threads: ThreadPoolExecutor, dtype: torch.dtype
) -> None:
    reader = TensorReader(file)
    whole, pieced = reader.read(str(dtype)), reader.read(str(dtype), threads=threads)
    assert whole.dtype == pieced.dtype == dtype
    assert as_bytes(whole) == as_bytes(pieced)
    assert reader.headers[str(dtype)].nbytes == whole.nbytes


def test_a_single_number_is_read(file: Path) -> None:
    assert TensorReader(file).read("number").item() == 2.5


class CountingExecutor(Executor):
    """Runs at once and counts."""

    def __init__(self) -> None:
        self.num_calls = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self.num_calls += 1
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.usefixtures("pieces_of_100_bytes")
def test_only_tensors_of_more_than_a_piece_are_divided(file: Path) -> None:
    counting = CountingExecutor()
    TensorReader(file).read("number", threads=counting)
    assert counting.num_calls == 0
    TensorReader(file).read("torch.uint8", threads=counting)
    assert counting.num_calls == 2


@pytest.mark.usefixtures("pieces_of_100_bytes")
def test_a_file_that_shrinks_is_an_error_in_pieces_too(
    file: Path, threads: ThreadPoolExecutor
) -> None:
    reader = TensorReader(file)
    with file.open("rb+") as opened:
        opened.truncate(reader.headers["torch.uint8"].offset + 150)
    with pytest.raises(OSError, match="35 bytes too early"):
        reader.read("torch.uint8", threads=threads)


@pytest.mark.usefixtures("pieces_of_100_bytes")
def test_a_piece_that_fails_waits_for_the_others(
    file: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their buffer belongs to the caller again when the error reaches it."""
    reader = TensorReader(file)
    read_piece, failed, ended = tensor_reader._read_piece, threading.Event(), []

    def first_fails(descriptor: int, buffer: memoryview, offset: int) -> None:
        if offset == reader.headers["torch.uint8"].offset:
            failed.set()
            raise OSError("broken disk")
        assert failed.wait(10)
        read_piece(descriptor, buffer, offset)
        ended.append(offset)

    monkeypatch.setattr(tensor_reader, "_read_piece", first_fails)
    with pytest.raises(OSError, match="broken disk"):
        reader.read("torch.uint8", threads=threads)
    assert len(ended) == 1
