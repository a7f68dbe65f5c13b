"""What is checked while a quantised checkpoint is opened and read, and what the error names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import CheckpointError, ConfigError
from experts.checkpoint import Checkpoint
from experts.quantised.scheme import Form
from tests.conftest import TINY_CONFIG
from trinity_serve.synthetic import Recipe, write_checkpoint

INDEX = "model.safetensors.index.json"
CONFIG = replace(TINY_CONFIG, dtype="bfloat16", vocab_size=64)
"""Without tokenizer, so that many can be written."""

MODULE = "model.layers.2.mlp.experts.3.up_proj"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small checkpoint of each form, by its name."""
    folder = tmp_path_factory.mktemp("forms")
    for form in Form:
        recipe = Recipe(form, scale_dtype="F32")
        write_checkpoint(CONFIG, folder / form, recipe=recipe)
    return folder


def copy_of(written: Path, form: Form, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / form, tmp_path / "copy"))


def change(folder: Path, name: str, changed: Callable[[Tensor], Tensor]) -> Path:
    """Rewrite the file that holds `name` with its tensor changed."""
    path = folder / str(json.loads((folder / INDEX).read_text())["weight_map"][name])
    tensors = load_file(path)
    tensors[name] = changed(tensors[name]).contiguous()
    save_file(tensors, path)
    return path


def rename(folder: Path, name: str, to: str | None) -> None:
    """Rename (or forget) a tensor in the index."""
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"].pop(name)
    if to is not None:
        index["weight_map"][to] = file
    (folder / INDEX).write_text(json.dumps(index))


def error_of(action: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value


def read(folder: Path) -> Tensor:
    return Checkpoint.open(str(folder)).tensor(f"{MODULE}.weight", (16, 32))


@pytest.mark.parametrize("form", Form)
def test_each_form_is_read_in_the_dtype_of_the_configuration(written: Path, form: Form) -> None:
    checkpoint = Checkpoint.open(str(written / form))
    gate_FD, up_FD, down_DF = checkpoint.expert(2, 3)
    assert [each.dtype for each in (gate_FD, up_FD, down_DF)] == [torch.bfloat16] * 3
    assert (gate_FD.shape, up_FD.shape, down_DF.shape) == ((16, 32), (16, 32), (32, 16))
    into = (torch.empty_like(gate_FD), torch.empty_like(up_FD), torch.empty_like(down_DF))
    assert checkpoint.expert(2, 3, into)[1] is into[1]
    assert torch.equal(into[1], up_FD)


@pytest.mark.parametrize("form", Form)
def test_fewer_bytes_are_read_than_the_weights_take_unquantised(written: Path, form: Form) -> None:
    checkpoint = Checkpoint.open(str(written / form))
    checkpoint.expert(2, 3)
    assert 0 < checkpoint.bytes_read < 3 * 16 * 32 * 2


@pytest.mark.parametrize("form", Form)
def test_a_matrix_can_be_had_in_its_stored_form(written: Path, form: Form) -> None:
    checkpoint = Checkpoint.open(str(written / form))
    matrix = checkpoint.matrix(f"{MODULE}.weight", (16, 32))
    assert matrix is not None
    assert matrix.scheme.form is form
    assert matrix.codes.element_size() * matrix.codes.nelement() <= 16 * 32
    assert checkpoint.matrix("lm_head.weight", (64, 32)) is None


@pytest.mark.parametrize(
    ("form", "suffix", "bad"),
    [
        (Form.FP8, "weight_scale", 0.0),
        (Form.FP8_DYNAMIC, "weight_scale", -1.0),
        (Form.FP8_BLOCK, "weight_scale", float("inf")),
        (Form.W4A16, "weight_scale", float("nan")),
        (Form.NVFP4, "weight_global_scale", 0.0),
        (Form.NVFP4, "weight_scale", float("nan")),
        (Form.NVFP4_MODELOPT, "weight_scale", -0.5),
        (Form.NVFP4_MODELOPT, "weight_scale_2", float("nan")),
    ],
)
def test_a_scale_that_is_none_names_tensor_and_file(
    written: Path, tmp_path: Path, form: Form, suffix: str, bad: float
) -> None:
    folder = copy_of(written, form, tmp_path)

    def spoil(scale: Tensor) -> Tensor:
        spoilt = scale.float().flatten()
        spoilt[0] = bad
        return spoilt.view(scale.shape).to(scale.dtype)

    path = change(folder, f"{MODULE}.{suffix}", spoil)
    error = error_of(lambda: read(folder))
    assert (error.file, error.tensor) == (str(path), f"{MODULE}.{suffix}")
    assert "finite scales" in error.expected
    assert f"{bad:g} (1 of" in error.found


def test_a_block_scale_of_nvfp4_may_have_underflowed(written: Path, tmp_path: Path) -> None:
    folder = copy_of(written, Form.NVFP4, tmp_path)
    change(
        folder, f"{MODULE}.weight_scale", lambda scale: torch.zeros_like(scale.float()).to(scale)
    )
    assert read(folder).abs().max() == 0


def test_a_code_that_is_no_number_is_found(written: Path, tmp_path: Path) -> None:
    folder = copy_of(written, Form.FP8, tmp_path)

    def spoil(codes: Tensor) -> Tensor:
        spoilt = codes.view(torch.uint8).clone()
        spoilt[5, 1] = 0x7F
        return spoilt.view(codes.dtype)

    path = change(folder, f"{MODULE}.weight", spoil)
    error = error_of(lambda: read(folder))
    assert (error.file, error.tensor) == (str(path), f"{MODULE}.weight")
    assert error.found == "another in row 5"


@pytest.mark.parametrize(
    ("form", "suffix", "changed", "expected"),
    [
        (Form.FP8, "weight", lambda t: t.bfloat16(), "dtype F8_E4M3"),
        (Form.FP8, "weight_scale", lambda t: t.expand(2), "shape [1] or []"),
        (Form.FP8_BLOCK, "weight_scale", lambda t: t.half(), "dtype BF16 or F32 or F8_E8M0"),
        (Form.FP8_DYNAMIC, "weight_scale", lambda t: t.T, "shape [16, 1]"),
        (Form.W4A16, "weight_packed", lambda t: t[:, :2], "shape [16, 4]"),
        (Form.W4A16, "weight_shape", lambda t: t.flip(0), "[16, 32]"),
        (Form.NVFP4, "weight_packed", lambda t: t.T, "shape [16, 16]"),
        (Form.NVFP4_MODELOPT, "weight_scale", lambda t: t.float(), "dtype F8_E4M3"),
    ],
)
def test_a_part_of_another_shape_or_dtype_is_refused(
    written: Path,
    tmp_path: Path,
    form: Form,
    suffix: str,
    changed: Callable[[Tensor], Tensor],
    expected: str,
) -> None:
    folder = copy_of(written, form, tmp_path)
    if suffix == "weight_packed" and form is Form.NVFP4:
        # Square at this width: a transposed one has the right shape.
        changed = lambda codes: codes[:8]  # noqa: E731
    change(folder, f"{MODULE}.{suffix}", changed)
    error = error_of(lambda: read(folder))
    assert (error.tensor, error.expected) == (f"{MODULE}.{suffix}", expected)


@pytest.mark.parametrize("form", Form)
def test_a_scale_that_is_missing_is_found_when_opening(
    written: Path, tmp_path: Path, form: Form
) -> None:
    folder = copy_of(written, form, tmp_path)
    rename(folder, f"{MODULE}.weight_scale", f"{MODULE}.weight_scale_inv")
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert error.tensor == f"{MODULE}.weight_scale"
    assert "weight_scale_inv" in error.found


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        (Form.FP8, "input_scale"),
        (Form.NVFP4, "input_global_scale"),
        (Form.NVFP4_MODELOPT, "input_scale"),
    ],
)
def test_scales_of_activations_may_be_there_or_not(
    written: Path, tmp_path: Path, form: Form, suffix: str
) -> None:
    folder = copy_of(written, form, tmp_path)
    rename(folder, f"{MODULE}.{suffix}", None)
    assert read(folder).shape == (16, 32)


def test_weights_that_the_configuration_says_nothing_of_are_refused(
    written: Path, tmp_path: Path
) -> None:
    folder = copy_of(written, Form.FP8_BLOCK, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"].append(f"re:{MODULE}")
    (folder / "config.json").write_text(json.dumps(config))
    assert error_of(lambda: Checkpoint.open(str(folder))).tensor == f"{MODULE}.weight_scale"


def test_a_form_that_is_not_read_is_refused_before_any_file_of_weights_is_opened(
    written: Path, tmp_path: Path
) -> None:
    folder = copy_of(written, Form.FP8_BLOCK, tmp_path)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quant_method.*awq.*compressed-tensors"):
        Checkpoint.open(str(folder))


def test_a_width_that_groups_do_not_divide_is_found_when_opening(
    written: Path, tmp_path: Path
) -> None:
    folder = copy_of(written, Form.W4A16, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    error = error_of(lambda: Checkpoint.open(str(folder)))
    assert "multiple of 128" in error.expected
