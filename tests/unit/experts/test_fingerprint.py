"""What two processes must share is of the weights too, not of the configuration alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.deadline import Deadline
from cluster.errors import CheckpointError, WrongModelError
from cluster.transport.inproc import InprocTransport
from cluster.transport.session import open_session
from cluster.types import Fingerprint
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of
from experts.kernels.reference import ReferenceKernels
from experts.quantised.scheme import Form
from experts.shard_loop import ShardLoop
from experts.tensor_names import telltale_shapes
from tests.conftest import TINY_CONFIG
from tests.support.quantised import SMALL
from tests.support.shards import random_shard
from trinity_serve.synthetic import Recipe, write_checkpoint


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same configuration."""
    return write_checkpoint(TINY_CONFIG, tmp_path_factory.mktemp("other") / "checkpoint", seed=1)


def fingerprint(path: Path) -> Fingerprint:
    return fingerprint_of(Checkpoint.open(str(path)), ReferenceKernels(), "float32")


def test_a_copy_has_the_same_and_another_seed_or_dtype_another(
    tiny_checkpoint: Path, other_seed: Path, tmp_path: Path
) -> None:
    ours = fingerprint(tiny_checkpoint)
    assert len(ours.model) == 16
    assert fingerprint(Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))) == ours
    assert fingerprint(other_seed).model != ours.model
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    assert checkpoint.fingerprint("bfloat16") != ours.model
    assert fingerprint_of(checkpoint, ReferenceKernels(), "bfloat16").bit_class != ours.bit_class


def test_another_configuration_over_the_same_weights_has_another(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "route_scale": 1.0}))
    assert fingerprint(changed).model != fingerprint(tiny_checkpoint).model


def flip_last_bit(folder: Path, name: str) -> None:
    """Change the tensor by the least that can be."""
    file = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    data = bytearray((folder / file).read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    end = json.loads(data[8 : 8 + header_bytes])[name]["data_offsets"][1]
    data[8 + header_bytes + end - 1] ^= 1
    (folder / file).write_bytes(data)


@pytest.mark.parametrize("name", [name for name, _ in telltale_shapes(TINY_CONFIG)])
def test_one_bit_of_each_tensor_that_it_covers_changes_it(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    changed = Path(shutil.copytree(tiny_checkpoint, tmp_path / "changed"))
    flip_last_bit(changed, name)
    assert fingerprint(changed).model != fingerprint(tiny_checkpoint).model


def test_it_costs_no_more_than_the_small_tensors(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    checkpoint.fingerprint("float32")
    assert 0 < checkpoint.bytes_read < 1024


def test_weights_that_cannot_be_read_are_an_error_of_the_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))
    index = json.loads((damaged / "model.safetensors.index.json").read_text())["weight_map"]
    (damaged / index["model.norm.weight"]).write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="safetensors"):
        fingerprint(damaged)


def test_a_shard_refuses_a_rank_of_the_same_configuration_and_other_weights(
    tiny_checkpoint: Path, other_seed: Path
) -> None:
    transport = InprocTransport()
    listener = transport.listen("inproc:shard")
    loop = ShardLoop(random_shard(TINY_CONFIG), listener, fingerprint(tiny_checkpoint))
    listener.pump = lambda: loop.run_once(0.0)
    hello = Hello(fingerprint(tiny_checkpoint), 0, 1, 1, "")
    stranger = replace(hello, fingerprint=fingerprint(other_seed))
    with pytest.raises(WrongModelError, match="checkpoint and dtype must be the same"):
        open_session(transport, listener.address, stranger, Deadline.after(2.0))
    session = open_session(transport, listener.address, hello, Deadline.after(2.0))
    session.link.close()
    loop.close()


def test_a_quantised_checkpoint_has_another_than_its_original_and_than_other_quantisations(
    tmp_path: Path,
) -> None:
    recipes = {
        "fp8": Recipe(Form.FP8),
        "fp8-float32-scales": Recipe(Form.FP8, scale_dtype="F32"),
        "fp8-block": Recipe(Form.FP8_BLOCK),
        "nvfp4": Recipe(Form.NVFP4),
    }
    paths = {
        name: write_checkpoint(SMALL, tmp_path / name, recipe=recipe)
        for name, recipe in recipes.items()
    }
    original = write_checkpoint(SMALL, tmp_path / "original")
    found = [fingerprint(path).model for path in (original, *paths.values())]
    assert len(set(found)) == 5


def test_one_bit_of_a_quantised_matrix_changes_it(tmp_path: Path) -> None:
    path = write_checkpoint(SMALL, tmp_path / "c", recipe=Recipe(Form.W4A16))
    before = fingerprint(path).model
    flip_last_bit(path, "model.layers.3.mlp.experts.0.gate_proj.weight_packed")
    assert fingerprint(path).model != before


def test_a_shard_that_read_fp8_refuses_a_rank_that_read_the_original(
    tmp_path: Path,
) -> None:
    original = write_checkpoint(SMALL, tmp_path / "original")
    quantised = write_checkpoint(SMALL, tmp_path / "fp8", recipe=Recipe(Form.FP8_DYNAMIC))
    transport = InprocTransport()
    listener = transport.listen("inproc:shard")
    loop = ShardLoop(random_shard(TINY_CONFIG), listener, fingerprint(quantised))
    listener.pump = lambda: loop.run_once(0.0)
    rank = Hello(fingerprint(original), 0, 1, 1, "")
    with pytest.raises(WrongModelError, match="checkpoint and dtype must be the same"):
        open_session(transport, listener.address, rank, Deadline.after(2.0))
    loop.close()
