"""Quantised synthetic checkpoints: the published layout, reproducible, close to the original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from cluster.errors import ConfigError
from experts.checkpoint import Checkpoint
from experts.quantised.scheme import Form
from tests.conftest import TINY_CONFIG
from tests.support.quantised import RECIPES, SMALL, recipe_name
from trinity_serve.cli.main import main
from trinity_serve.synthetic import Recipe, Scope, write_checkpoint
from trinity_serve.synthetic.weights import make_tensor

ROUTED = "model.layers.3.mlp.experts.5.down_proj"
BLOCKS = "model.layers.0.mlp.up_proj"

# The first is 256 × 64, the second 768 × 256.
STORED = {
    Form.FP8: {
        f"{ROUTED}.weight": ("F8_E4M3", [256, 64]),
        f"{ROUTED}.weight_scale": ("BF16", [1]),
        f"{ROUTED}.input_scale": ("BF16", [1]),
    },
    Form.FP8_DYNAMIC: {
        f"{ROUTED}.weight": ("F8_E4M3", [256, 64]),
        f"{ROUTED}.weight_scale": ("BF16", [256, 1]),
    },
    Form.FP8_BLOCK: {
        f"{ROUTED}.weight": ("F8_E4M3", [256, 64]),
        f"{ROUTED}.weight_scale": ("BF16", [2, 1]),
        f"{BLOCKS}.weight": ("F8_E4M3", [768, 256]),
        f"{BLOCKS}.weight_scale": ("BF16", [6, 2]),
    },
    Form.W4A16: {
        f"{ROUTED}.weight_packed": ("I32", [256, 8]),
        f"{ROUTED}.weight_scale": ("BF16", [256, 1]),
        f"{ROUTED}.weight_shape": ("I64", [2]),
        f"{BLOCKS}.weight_scale": ("BF16", [768, 4]),
    },
    Form.NVFP4: {
        f"{ROUTED}.weight_packed": ("U8", [256, 32]),
        f"{ROUTED}.weight_scale": ("F8_E4M3", [256, 4]),
        f"{ROUTED}.weight_global_scale": ("F32", [1]),
        f"{ROUTED}.input_global_scale": ("F32", [1]),
    },
    Form.NVFP4_MODELOPT: {
        f"{ROUTED}.weight": ("U8", [256, 32]),
        f"{ROUTED}.weight_scale": ("F8_E4M3", [256, 4]),
        f"{ROUTED}.weight_scale_2": ("F32", []),
        f"{ROUTED}.input_scale": ("F32", []),
        f"{BLOCKS}.weight": ("BF16", [768, 256]),
    },
}


def headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), part.get_shape())
    return found


def data_bytes(file: Path) -> int:
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize("form", Form)
def test_tensors_have_the_names_dtypes_and_shapes_of_the_form(form: Form, tmp_path: Path) -> None:
    path = write_checkpoint(SMALL, tmp_path / "c", recipe=Recipe(form))
    found = headers(path)
    assert {name: found[name] for name in STORED[form]} == STORED[form]
    for name in ("lm_head.weight", "model.layers.2.mlp.router.gate.weight", "model.norm.weight"):
        assert found[name][0] == "BF16"
    routed = {name for name in found if name.startswith(f"{ROUTED}.")}
    assert routed == {name for name in STORED[form] if name.startswith(f"{ROUTED}.")}
    assert (path / "hf_quant_config.json").exists() == (form is Form.NVFP4_MODELOPT)


@pytest.mark.parametrize(
    ("scope", "quantised"),
    [
        (Scope.ALL, {"self_attn.q_proj", "mlp.shared_experts.up_proj", "mlp.experts.0.up_proj"}),
        (Scope.MLPS, {"mlp.shared_experts.up_proj", "mlp.experts.0.up_proj"}),
        (Scope.EXPERTS, {"mlp.experts.0.up_proj"}),
    ],
)
@pytest.mark.parametrize("form", [Form.FP8_DYNAMIC, Form.NVFP4_MODELOPT])
def test_only_what_is_in_scope_is_quantised(
    form: Form, scope: Scope, quantised: set[str], tmp_path: Path
) -> None:
    config = replace(TINY_CONFIG, dtype="bfloat16", vocab_size=64)
    path = write_checkpoint(config, tmp_path / "c", recipe=Recipe(form, scope=scope))
    with_scales = {
        name.removesuffix(".weight_scale").removeprefix("model.layers.2.")
        for name in headers(path)
        if name.startswith("model.layers.2.") and name.endswith(".weight_scale")
    }
    names = ("self_attn.q_proj", "mlp.shared_experts.up_proj", "mlp.experts.0.up_proj")
    assert {name for name in names if name in with_scales} == quantised
    dense = "model.layers.0.mlp.up_proj.weight_scale" in headers(path)
    assert dense == (scope is not Scope.EXPERTS)


@pytest.mark.parametrize("recipe", RECIPES, ids=recipe_name)
def test_dequantised_weights_are_near_the_original(recipe: Recipe, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(write_checkpoint(SMALL, tmp_path / "c", recipe=recipe)))
    name, shape = f"{ROUTED}.weight", (256, 64)
    original = make_tensor(name, shape, SMALL, 0, "bfloat16").float()
    largest_error = (checkpoint.tensor(name, shape).float() - original).abs().max()
    # Half of the widest step: 1/16 of a value in E4M3 (twice that, rounded up to a power of two,
    # is within its range still), 1/15 of the range in int4, 1 of 6 in E2M1.
    step = {Form.W4A16: 2 / 15, Form.NVFP4: 2 / 6, Form.NVFP4_MODELOPT: 2 / 6}
    assert 0 < largest_error <= original.abs().max() * step.get(recipe.form, 1 / 8) / 2 * 1.1


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    recipe = Recipe(Form.NVFP4)
    first, second = (
        write_checkpoint(TINY_CONFIG, tmp_path / name, dtype="bfloat16", recipe=recipe)
        for name in ("first", "second")
    )
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_an_index_tells_the_size_of_what_is_stored(tmp_path: Path) -> None:
    path = write_checkpoint(SMALL, tmp_path / "c", recipe=Recipe(Form.W4A16))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = path.glob("*.safetensors")
    size = sum(data_bytes(file) for file in files)
    assert index["metadata"] == {"total_size": size}
    assert set(index["weight_map"]) == set(headers(path))


def test_widths_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    config = replace(TINY_CONFIG, moe_intermediate_size=12)
    with pytest.raises(ConfigError, match="multiple of 8"):
        write_checkpoint(config, tmp_path / "c", recipe=Recipe(Form.W4A16))


def test_the_command_writes_a_form_and_inspect_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "demo")
    assert main(["checkpoint", "write", "demo", path, "--quantised", "fp8-block"]) == 0
    assert main(["checkpoint", "inspect", path]) == 0
    assert "as fp8-block, dequantised to bfloat16 on loading" in capsys.readouterr().out


def test_check_names_a_form_that_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY_CONFIG, dtype="bfloat16", vocab_size=64)
    folder = write_checkpoint(config, tmp_path / "model", recipe=Recipe(Form.FP8))
    shipped = Path(__file__).parents[4] / "ray_config.yaml"
    file = tmp_path / "ray_config.yaml"
    text = shipped.read_text()
    old = next(line for line in text.splitlines() if line.strip().startswith("path:"))
    indent = old[: len(old) - len(old.lstrip())]
    file.write_text(text.replace(old, f"{indent}path: {folder}"))
    assert main(["check", str(file)]) == 0
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"]["format"] = "int-quantized"
    (folder / "config.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "format: is 'int-quantized'" in out
    assert "float-quantized" in out
