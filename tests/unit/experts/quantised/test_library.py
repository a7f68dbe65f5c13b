"""Each form against the library that defines it, bit for bit: compressed-tensors.

It reads our configuration and our stored tensors and decompresses them; and it compresses the
original weights under our scales to our codes. ModelOpt's form is told by its documented formula
over the library's unpacked codes, and by the library's own conversion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert import ModelOptNvfp4Converter
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    preset_name_to_scheme,
)
from safetensors.torch import load_file
from torch import Tensor

from experts.checkpoint import Checkpoint
from experts.quantised.scheme import Form
from experts.tensor_names import Shape
from tests.support.quantised import RECIPES, SMALL, recipe_name
from trinity_serve.synthetic import Recipe, write_checkpoint
from trinity_serve.synthetic.weights import make_tensor

MODULES: dict[str, Shape] = {
    "model.layers.2.mlp.experts.5.gate_proj": (64, 256),
    "model.layers.3.mlp.experts.0.down_proj": (256, 64),
    "model.layers.2.mlp.shared_experts.up_proj": (64, 256),
    "model.layers.1.mlp.down_proj": (256, 768),
    "model.layers.0.self_attn.gate_proj": (256, 256),
}


@dataclass(frozen=True)
class Written:
    """A quantised checkpoint, and its tensors as the safetensors library reads them."""

    recipe: Recipe
    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]

    @property
    def modules(self) -> dict[str, Shape]:
        """Those of `MODULES` that are quantised."""
        layout = self.checkpoint.layout
        return {
            module: shape
            for module, shape in MODULES.items()
            if layout.scheme_of(f"{module}.weight") is not None
        }

    def stored(self, module: str) -> dict[str, Tensor]:
        """What is stored for a module, under the library's local names."""
        return {
            name.removeprefix(f"{module}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{module}.")
        }

    def scheme(self) -> QuantizationScheme:
        """What the library makes of the checkpoint's configuration."""
        block = json.loads((self.checkpoint.path / "config.json").read_text())
        parsed = QuantizationConfig.model_validate(block["quantization_config"])
        (scheme,) = parsed.config_groups.values()
        return scheme


@pytest.fixture(scope="module", params=RECIPES, ids=recipe_name)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    recipe: Recipe = request.param
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    write_checkpoint(SMALL, folder, recipe=recipe)
    files = (load_file(path) for path in folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    return Written(recipe, Checkpoint.open(str(folder)), tensors)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """The library compiles some of its functions, which would take longer than the tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


def decompressed(written: Written, module: str) -> Tensor:
    """The library's weight, or by the formula: value × (scale × weight_scale_2) in float32."""
    stored = written.stored(module)
    if written.recipe.form is Form.NVFP4_MODELOPT:
        rows, half = stored["weight"].shape
        values = unpack_fp4_from_uint8(stored["weight"], rows, 2 * half, torch.float32)
        scale = stored["weight_scale"].float() * stored["weight_scale_2"]
        by_formula: Tensor = values * scale.repeat_interleave(16, dim=1)
        return by_formula
    scheme = written.scheme()
    if stored["weight_scale"].dtype == torch.float8_e8m0fnu:
        # The library would multiply in the scale's dtype, which holds powers of two only.
        stored["weight_scale"] = stored["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    weight: Tensor = compressor.decompress(stored, scheme)["weight"]
    return weight


def test_weights_are_what_the_library_decompresses(written: Written) -> None:
    assert len(written.modules) >= 2
    for module, shape in written.modules.items():
        ours = written.checkpoint.tensor(f"{module}.weight", shape)
        assert torch.equal(ours, decompressed(written, module).to(torch.bfloat16)), module


def test_the_library_compresses_the_original_to_the_codes_that_are_written(
    written: Written,
) -> None:
    modelopt = written.recipe.form is Form.NVFP4_MODELOPT
    scheme = preset_name_to_scheme("NVFP4", ["Linear"]) if modelopt else written.scheme()
    name = "nvfp4-pack-quantized" if modelopt else str(scheme.format)
    compressor = BaseCompressor.get_value_from_registry(name)
    for module, shape in written.modules.items():
        stored = (
            in_the_librarys_layout(written.stored(module)) if modelopt else written.stored(module)
        )
        weight = make_tensor(f"{module}.weight", shape, SMALL, 0, "bfloat16").float()
        state = {"weight": weight, "weight_scale": stored["weight_scale"].float()}
        if "weight_global_scale" in stored:
            state["weight_global_scale"] = stored["weight_global_scale"]
        theirs = compressor.compress(state, scheme)
        codes = "weight" if "weight" in stored else "weight_packed"
        assert torch.equal(theirs[codes].view(torch.uint8), stored[codes].view(torch.uint8)), module


def in_the_librarys_layout(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What its converter makes of ModelOpt's: other names, and 1 / weight_scale_2."""
    tensors = {f"linear.{name}": tensor for name, tensor in stored.items()}
    converted = ModelOptNvfp4Converter(targets=["linear"]).process(tensors) or tensors
    return {name.removeprefix("linear."): tensor for name, tensor in converted.items()}


@pytest.mark.parametrize("written", [RECIPES[-1]], indirect=True, ids=recipe_name)
def test_what_multiplies_in_modelopts_layout_divides_in_the_librarys(written: Written) -> None:
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    scheme = preset_name_to_scheme("NVFP4", ["Linear"])
    for module, shape in written.modules.items():
        stored = in_the_librarys_layout(written.stored(module))
        theirs = compressor.decompress(stored, scheme)["weight"].float()
        ours = written.checkpoint.tensor(f"{module}.weight", shape).float()
        # The reciprocal is rounded: an effective scale may be the next float32.
        assert torch.allclose(ours, theirs, rtol=2**-7, atol=0)
