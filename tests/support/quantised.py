"""Quantised checkpoints for tests: the forms, a small model, and the same without quantisation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from experts.checkpoint import Checkpoint
from experts.quantised.scheme import Form
from experts.tensor_names import tensor_shapes
from trinity_serve.synthetic import PRESETS, Recipe, Scope

SMALL = replace(PRESETS["tiny"], vocab_size=256, num_experts=16, num_hidden_layers=4)
SMALL = replace(SMALL, layer_types=SMALL.layer_types[:4], sliding_window=40)
"""Hidden 256 and experts of 64: whole 128×128 blocks, and blocks cut short; no tokenizer."""

RECIPES = (
    Recipe(Form.FP8),
    Recipe(Form.FP8_DYNAMIC, scale_dtype="F32"),
    Recipe(Form.FP8_BLOCK, scale_dtype="F32"),
    Recipe(Form.FP8_BLOCK, scale_dtype="BF16"),
    Recipe(Form.FP8_BLOCK, scale_dtype="F8_E8M0"),
    Recipe(Form.W4A16),
    Recipe(Form.NVFP4, scope=Scope.ALL),
    Recipe(Form.NVFP4_MODELOPT),
)
"""Every form, each scale dtype of blocks, and all three scopes."""


def recipe_name(recipe: Recipe) -> str:
    """Name a recipe in a test's id."""
    return f"{recipe.form}-{recipe.scale_dtype}-{recipe.quantised_scope}"


def write_dequantised(quantised: Path, target: Path) -> Path:
    """Write an unquantised checkpoint of what the weights of `quantised` are read as."""
    checkpoint = Checkpoint.open(str(quantised))
    target.mkdir()
    for path in quantised.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copy(path, target)
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    (target / "hf_quant_config.json").unlink(missing_ok=True)
    tensors = {
        name: checkpoint.tensor(name, shape) for name, shape in tensor_shapes(checkpoint.config)
    }
    save_file(tensors, target / "model.safetensors")
    return target
