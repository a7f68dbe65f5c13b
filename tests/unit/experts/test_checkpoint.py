from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import CheckpointError, ConfigError, ModelDownloadError
from cluster.model_config import AfmoeConfig
from cluster.types import ShardSlice
from experts import hub_client
from experts.checkpoint import Checkpoint
from experts.tensor_names import expert_names, tensor_shapes

INDEX = "model.safetensors.index.json"
NORM = "model.layers.2.input_layernorm.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def weight_map(folder: Path) -> dict[str, str]:
    content: dict[str, dict[str, str]] = json.loads((folder / INDEX).read_text())
    return content["weight_map"]


def write_weight_map(folder: Path, changed: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": changed}))


def rewrite_file_of(folder: Path, name: str, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Load the weight file that holds `name`, change its tensors, save it again."""
    path = folder / weight_map(folder)[name]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


def all_tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def error_of(action: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value


def read_norm(folder: Path) -> Tensor:
    return Checkpoint.open(str(folder)).tensor(NORM, (32,))


def test_every_tensor_is_what_the_safetensors_library_reads(
    tiny_checkpoint: Path, tiny_config: AfmoeConfig
) -> None:
    checkpoint, library = Checkpoint.open(str(tiny_checkpoint)), all_tensors(tiny_checkpoint)
    shapes = dict(tensor_shapes(tiny_config))
    assert shapes.keys() == library.keys()
    for name, shape in shapes.items():
        assert torch.equal(checkpoint.tensor(name, shape), library[name]), name


def test_a_single_file_reads_the_same_as_many(folder: Path, tiny_checkpoint: Path) -> None:
    tensors = all_tensors(folder)
    for file in folder.glob("*safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")

    single, indexed = Checkpoint.open(str(folder)), Checkpoint.open(str(tiny_checkpoint))

    assert (single.is_indexed, indexed.is_indexed) == (False, True)
    assert torch.equal(single.tensor(NORM, (32,)), indexed.tensor(NORM, (32,)))


def test_an_expert_is_its_gate_up_and_down(tiny_checkpoint: Path) -> None:
    gate_FD, up_FD, down_DF = Checkpoint.open(str(tiny_checkpoint)).expert(layer=3, expert=5)
    library, names = all_tensors(tiny_checkpoint), expert_names(3, 5)
    assert (gate_FD.shape, up_FD.shape, down_DF.shape) == ((16, 32), (16, 32), (32, 16))
    for tensor, name in zip((gate_FD, up_FD, down_DF), names, strict=True):
        assert torch.equal(tensor, library[name])


def test_opening_reads_no_tensor_and_each_read_is_counted(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    assert checkpoint.bytes_read == 0
    checkpoint.expert(layer=1, expert=0)
    assert checkpoint.bytes_read == 3 * 16 * 32 * 4


def test_a_shard_reads_only_its_own_experts(
    tiny_checkpoint: Path, tiny_config: AfmoeConfig
) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    experts = ShardSlice(1, 3).experts(tiny_config.num_experts)
    for layer in tiny_config.moe_layers:
        for expert in experts:
            checkpoint.expert(layer, expert)
    expert_bytes = 3 * tiny_config.hidden_size * tiny_config.moe_intermediate_size * 4
    assert checkpoint.bytes_read == tiny_config.num_moe_layers * len(experts) * expert_bytes


def test_files_without_wanted_experts_are_neither_named_nor_opened(
    folder: Path, tiny_config: AfmoeConfig
) -> None:
    first_expert = {name: tensor for name, tensor in all_tensors(folder).items() if ".0." in name}
    mapping = weight_map(folder)
    own = [name for layer in tiny_config.moe_layers for name in expert_names(layer, 0)]
    save_file({name: first_expert[name] for name in own}, folder / "own.safetensors")
    write_weight_map(folder, {**mapping, **dict.fromkeys(own, "own.safetensors")})
    for file in set(mapping.values()):
        (folder / file).write_bytes(b"damaged")

    checkpoint = Checkpoint.open(str(folder))

    assert checkpoint.expert_files([0]) == ["own.safetensors"]
    assert checkpoint.expert(1, 0)[0].shape == (16, 32)
    error_of(lambda: checkpoint.expert(1, 1))


def test_tensors_are_aligned_whatever_their_place_in_the_file(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in checkpoint.expert(2, 3))


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float32])
def test_the_expert_bias_may_have_either_dtype(folder: Path, other: torch.dtype) -> None:
    name = "model.layers.1.mlp.expert_bias"

    def cast(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(other)

    rewrite_file_of(folder, name, cast)
    assert Checkpoint.open(str(folder)).tensor(name, (16,)).dtype == other


def test_a_wrong_dtype_names_file_tensor_expected_and_found(folder: Path) -> None:
    def cast(tensors: dict[str, Tensor]) -> None:
        tensors[NORM] = tensors[NORM].to(torch.float16)

    path = rewrite_file_of(folder, NORM, cast)
    error = error_of(lambda: read_norm(folder))
    assert error.args == (str(path), NORM, "dtype F32", "F16")


def test_a_wrong_shape_names_file_tensor_expected_and_found(folder: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        tensors[NORM] = torch.zeros(33)

    path = rewrite_file_of(folder, NORM, grow)
    error = error_of(lambda: read_norm(folder))
    assert error.args == (str(path), NORM, "shape [32]", "[33]")


def test_a_transposed_expert_is_found_by_its_shape(folder: Path) -> None:
    name = expert_names(1, 2)[2]

    def transpose(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].T.contiguous()

    rewrite_file_of(folder, name, transpose)
    error = error_of(lambda: Checkpoint.open(str(folder)).expert(1, 2))
    assert (error.tensor, error.expected, error.found) == (name, "shape [32, 16]", "[16, 32]")


def test_a_misnamed_tensor_is_reported_with_the_name_it_has(folder: Path) -> None:
    mapping = weight_map(folder)
    mapping["model.layers.2.input_layer_norm.weight"] = mapping.pop(NORM)
    write_weight_map(folder, mapping)
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert error.tensor == NORM
    assert "input_layer_norm.weight" in error.found


def test_a_suffixed_expert_bias_is_reported_as_misnamed(folder: Path) -> None:
    mapping = weight_map(folder)
    name = "model.layers.1.mlp.expert_bias"
    mapping[f"{name}.weight"] = mapping.pop(name)
    write_weight_map(folder, mapping)
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert error.tensor == name
    assert f"{name}.weight" in error.found


def test_an_unknown_tensor_is_refused_because_its_arithmetic_is_unknown(folder: Path) -> None:
    extra = "model.layers.0.self_attn.q_proj.bias"
    write_weight_map(folder, {**weight_map(folder), extra: "model-00001-of-00005.safetensors"})
    assert error_of(lambda: Checkpoint.open(str(folder))).tensor == extra


def test_a_tensor_that_the_index_misplaces_is_reported(folder: Path) -> None:
    mapping = weight_map(folder)
    mapping[NORM] = next(file for file in mapping.values() if file != mapping[NORM])
    write_weight_map(folder, mapping)
    error = error_of(lambda: read_norm(folder))
    assert error.tensor == NORM
    assert error.file.endswith(mapping[NORM])


def test_a_missing_weight_file_is_found_when_opening(folder: Path) -> None:
    (folder / "model-00002-of-00005.safetensors").unlink()
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert error.file.endswith("model-00002-of-00005.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weight_file_is_reported(folder: Path, kept: int) -> None:
    path = folder / weight_map(folder)[NORM]
    path.write_bytes(path.read_bytes()[:kept])
    error = error_of(lambda: read_norm(folder))
    assert error.file == str(path)
    assert "truncated" in error.found


def test_a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    path = folder / weight_map(folder)[NORM]
    checkpoint.tensor(NORM, (32,))
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    with path.open("rb+") as file:
        file.truncate(8 + header_bytes)
    assert error_of(lambda: checkpoint.tensor(NORM, (32,))).tensor == NORM


@pytest.mark.parametrize(
    "content", ["", "{}", '{"weight_map": 3}', '{"weight_map": {"model.norm.weight": 3}}']
)
def test_a_broken_index_is_reported(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    assert error_of(lambda: Checkpoint.open(str(folder))).file == str(folder / INDEX)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "model.bin", "a/b.pt"])
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, file: str) -> None:
    write_weight_map(folder, {**weight_map(folder), NORM: file})
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert error.tensor == NORM
    assert file in error.found


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_never_opened(folder: Path, pickle: str) -> None:
    for file in folder.glob("*safetensors*"):
        file.unlink()
    (folder / pickle).write_bytes(b"\x80\x04.")
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert pickle in error.found
    assert "never opened" in error.found


def test_a_folder_without_weights_says_what_was_looked_for(folder: Path) -> None:
    for file in folder.glob("*safetensors*"):
        file.unlink()
    assert "model.safetensors" in error_of(lambda: Checkpoint.open(str(folder))).expected


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize("model", ["no/such/folder", "/no/such/folder", "nothing", "../x/y"])
def test_neither_a_folder_nor_a_hub_id_is_refused(model: str) -> None:
    assert "Hub id" in error_of(lambda: Checkpoint.open(model)).expected


@pytest.fixture
def fake_hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub whose only model is `owner/tiny`; returns the names of the files asked for."""
    snapshot, asked = tmp_path / "snapshots" / "c0ffee", list[str]()

    def download(repo_id: str, filename: str, revision: str) -> str:
        assert (repo_id, revision) == ("owner/tiny", "c0ffee")
        asked.append(filename)
        return str(shutil.copy(tiny_checkpoint / filename, snapshot / filename))

    def snapshot_small_files(repo_id: str, allow_patterns: list[str]) -> str:
        if repo_id != "owner/tiny":
            raise LocalEntryNotFoundError("no network")
        assert not any("safetensors" in pattern for pattern in allow_patterns)
        snapshot.mkdir(parents=True)
        for pattern in allow_patterns:
            for path in tiny_checkpoint.glob(pattern):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr(hub_client, "hf_hub_download", download)
    monkeypatch.setattr(hub_client, "snapshot_download", snapshot_small_files)
    return asked


def test_of_a_hub_id_only_the_weight_files_in_use_are_fetched(
    fake_hub: list[str], tiny_checkpoint: Path
) -> None:
    checkpoint = Checkpoint.open("owner/tiny")
    assert fake_hub == []
    expected = Checkpoint.open(str(tiny_checkpoint)).tensor(NORM, (32,))
    for _ in range(2):
        assert torch.equal(checkpoint.tensor(NORM, (32,)), expected)
    assert fake_hub == [weight_map(tiny_checkpoint)[NORM]]


def test_a_hub_that_cannot_be_reached_is_an_error_with_advice(fake_hub: list[str]) -> None:
    with pytest.raises(ModelDownloadError, match=r"owner/other.*local folder"):
        Checkpoint.open("owner/other")
