"""Bytes per second of reading experts, against the page cache's own rate in the same run.

    python -m tests.bench.bench_loading [CHECKPOINT]

Without a checkpoint it makes an outline of 1.2 GB: the page cache holds its zeros like any other
bytes, and only DeepNVMe, which reads past it, needs a real one. The page cache's rate is that of
reading the same files from end to end into one buffer on one thread. Loading is to reach 0.8 of it.
Readers:

- `plain`: one tensor after the other, on one thread
- `pieces-N`: each in pieces on N threads, as `ExpertStore.load` reads
- `store-reference`: `ExpertStore.load` as it is, with kernels that keep weights as they are read
- `deepnvme-N`: DeepSpeed's asynchronous I/O into page-locked memory, past the page cache, where its
  extension can be built
- `pinned`: with a CUDA device, read into page-locked memory and copied to the device meanwhile
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from experts.checkpoint import Checkpoint
from experts.kernels.reference import ReferenceKernels
from experts.staging import Staging
from experts.store import ExpertStore
from experts.tensor_names import expert_names
from tests.bench.report import Figure, Machine, report
from trinity_serve.synthetic import PRESETS, slice_of, write_checkpoint_outline

SHAPE = replace(slice_of(PRESETS["large"], 2, 1, num_experts=20), vocab_size=512)
"""One layer of 20 experts of Large: tensors of 18.9 MB, 1.1 GB of them."""

_BUFFER_BYTES = 8 << 20


def page_cache_rate(checkpoint: Checkpoint) -> float:
    """Read the files that hold experts from end to end; return bytes per second."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    experts = range(checkpoint.config.num_experts)
    paths = [checkpoint.path / file for file in checkpoint.expert_files(experts)]
    total, began_s = 0, time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - began_s)


def read_experts(checkpoint: Checkpoint, num_threads: int, device: torch.device) -> float:
    """Read every expert as a store does, without packing; return bytes per second."""
    config = checkpoint.config
    hidden, width = config.hidden_size, config.moe_intermediate_size
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    staging = Staging(shapes, torch.bfloat16, device)
    context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if num_threads > 1:
        context = checkpoint.reading_side_by_side(num_threads)
    before = checkpoint.bytes_read
    # Buffers are touched first: a store takes a few for thousands of experts.
    first = [staging.take() for _ in range(3)]
    for buffers in first:
        for buffer in buffers:
            buffer.zero_()
        staging.give_back(buffers)
    began_s = time.perf_counter()
    with context:
        for layer in config.moe_layers:
            for expert in range(config.num_experts):
                gate_FD, up_FD, down_DF = staging.take()
                weights = checkpoint.expert(layer, expert, (gate_FD, up_FD, down_DF))
                if device.type == "cuda":
                    _ = [weight.to(device, non_blocking=True) for weight in weights]
                staging.give_back(weights)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (checkpoint.bytes_read - before) / (time.perf_counter() - began_s)


def load_store(checkpoint: Checkpoint) -> float:
    """Load a whole store; return bytes per second of reading, checking and keeping."""
    store = ExpertStore.empty(checkpoint.config, ReferenceKernels(), checkpoint.config.dtype)
    before, began_s = checkpoint.bytes_read, time.perf_counter()
    experts = range(checkpoint.config.num_experts)
    store.load(checkpoint, dict.fromkeys(range(len(store.tables)), experts))
    return (checkpoint.bytes_read - before) / (time.perf_counter() - began_s)


def deepnvme(checkpoint: Checkpoint, num_threads: int) -> float:
    """Read the same ranges by DeepNVMe. Raises whatever its build or import raises."""
    module = (
        importlib.import_module("deepspeed.ops.op_builder").AsyncIOBuilder().load(verbose=False)
    )
    handle = module.aio_handle(1 << 20, 32, False, True, num_threads)
    config = checkpoint.config
    shape = (config.moe_intermediate_size, config.hidden_size)
    total, began_s = 0, 0.0
    for expert in range(config.num_experts):
        for name in expert_names(config.moe_layers[0], expert):
            for found in checkpoint.ranges(name, shape):
                # Offsets and lengths in whole blocks, as direct I/O wants them.
                start = found.offset // 4096 * 4096
                length = (found.offset + found.nbytes - start) // 4096 * 4096
                buffer = handle.new_cpu_locked_tensor(length, torch.empty(0, dtype=torch.uint8))
                began_s = began_s or time.perf_counter()
                handle.sync_pread(buffer, str(checkpoint.path / found.file), start)
                total += length
                handle.free_cpu_locked_tensor(buffer)
    return total / (time.perf_counter() - began_s)


def readers() -> Iterator[tuple[str, Callable[[Checkpoint], float]]]:
    """Yield each reader's name and what measures it."""
    cpu = torch.device("cpu")
    yield "plain", partial(read_experts, num_threads=1, device=cpu)
    for num_threads in (2, 4, 8):
        yield f"pieces-{num_threads}", partial(read_experts, num_threads=num_threads, device=cpu)
    yield "store-reference", load_store
    if torch.cuda.is_available():
        yield "pinned", partial(read_experts, num_threads=4, device=torch.device("cuda"))
    for num_threads in (1, 4):
        yield f"deepnvme-{num_threads}", partial(deepnvme, num_threads=num_threads)


def measure(path: Path, repeats: int) -> None:
    """Print the page cache's rate and each reader's; the best of so many runs, in turn."""
    machine, checkpoint = Machine.here(), Checkpoint.open(str(path))
    limit = max(page_cache_rate(checkpoint) for _ in range(repeats + 1))
    rates: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in readers():
            try:
                rates[name] = max(rates.get(name, 0.0), run(checkpoint))
            except Exception as error:  # DeepNVMe fails in many ways where it cannot be built
                if not name.startswith("deepnvme"):
                    raise
                print(f"{name}: cannot be had here: {type(error).__name__}: {error}")
        limit = max(limit, page_cache_rate(checkpoint))
    report(machine, Figure("loading", limit / 1e9, "GB/s", {"reader": "page-cache"}))
    for name, rate in rates.items():
        report(machine, Figure("loading", rate / 1e9, "GB/s", {"reader": name}))
        report(machine, Figure("loading", rate / limit, "of the page cache", {"reader": name}))


def main() -> None:
    """Measure, on a checkpoint that is there or on one of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.checkpoint is not None:
        measure(options.checkpoint, options.repeats)
        return
    with tempfile.TemporaryDirectory(prefix="trinity-loading-") as folder:
        path = write_checkpoint_outline(SHAPE, Path(folder) / "checkpoint")
        measure(path, options.repeats)


if __name__ == "__main__":
    main()
