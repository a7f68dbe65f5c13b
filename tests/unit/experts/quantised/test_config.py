"""What a checkpoint's configuration says is quantised, and what of it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from experts.quantised.config import parse_quantisation, read_quantisation
from experts.quantised.description import Quantisation
from experts.quantised.scheme import Form, Scheme

ATTENTION = "model.layers.3.self_attn.q_proj.weight"
ATTENTION_GATE = "model.layers.3.self_attn.gate_proj.weight"
DENSE = "model.layers.0.mlp.gate_proj.weight"
SHARED = "model.layers.3.mlp.shared_experts.down_proj.weight"
ROUTED = "model.layers.3.mlp.experts.17.up_proj.weight"
ALL = (ATTENTION, ATTENTION_GATE, DENSE, SHARED, ROUTED)

FP8_BLOCK = {
    "num_bits": 8,
    "type": "float",
    "strategy": "block",
    "block_structure": [128, 128],
    "symmetric": True,
    "dynamic": False,
}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def group(weights: Mapping[str, object], *targets: str, **more: object) -> dict[str, object]:
    return {"targets": list(targets) or ["Linear"], "weights": weights, **more}


def block(
    groups: Mapping[str, object], file_format: str = "float-quantized", **more: object
) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": file_format,
        "config_groups": groups,
        **more,
    }


def parse(quantization_config: object) -> Quantisation:
    return parse_quantisation({"quantization_config": quantization_config}, "config.json")


def parse_one(
    weights: Mapping[str, object], file_format: str = "float-quantized", **more: object
) -> Quantisation:
    return parse(block({"group_0": group(weights)}, file_format, **more))


@pytest.mark.parametrize(
    ("weights", "file_format", "scheme"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "float-quantized", Form.FP8),
        ({"num_bits": 8, "type": "float"}, "float-quantized", Form.FP8),
        (
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            "float-quantized",
            Form.FP8_DYNAMIC,
        ),
        (FP8_BLOCK, "float-quantized", Form.FP8_BLOCK),
        (FP8_BLOCK, "naive-quantized", Form.FP8_BLOCK),
    ],
)
def test_each_way_of_scaling_fp8_is_told_apart(
    weights: Mapping[str, object], file_format: str, scheme: Form
) -> None:
    quantisation = parse_one(weights, file_format)
    assert {quantisation.scheme_of(name) for name in ALL} == {Scheme(scheme)}
    assert quantisation.name == scheme


def test_groups_keep_their_size() -> None:
    assert parse_one(INT4, "pack-quantized").scheme_of(ROUTED) == Scheme(Form.W4A16, 128)
    halved = parse_one({**INT4, "group_size": 64}, "pack-quantized")
    assert halved.scheme_of(ROUTED) == Scheme(Form.W4A16, 64)
    assert parse_one(NVFP4, "nvfp4-pack-quantized").scheme_of(DENSE) == Scheme(Form.NVFP4, 16)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.3.mlp.router.gate.weight",
        "model.layers.3.mlp.expert_bias",
        "model.layers.3.self_attn.q_norm.weight",
    ],
)
def test_what_no_published_form_quantises_never_is(name: str) -> None:
    assert parse_one(FP8_BLOCK).scheme_of(name) is None


@pytest.mark.parametrize(
    ("ignored", "quantised"),
    [
        (["lm_head", "re:.*mlp.gate$"], ALL),
        (["re:.*self_attn.*"], (DENSE, SHARED, ROUTED)),
        (["re:self_attn"], ALL),
        (["model.layers.3.self_attn.q_proj"], (ATTENTION_GATE, DENSE, SHARED, ROUTED)),
        (["re:.*shared_experts", r"re:.*layers\.0\."], (ATTENTION, ATTENTION_GATE, ROUTED)),
    ],
)
def test_ignored_modules_are_stored_as_they_are(
    ignored: list[str], quantised: tuple[str, ...]
) -> None:
    quantisation = parse_one(FP8_BLOCK, ignore=ignored)
    assert tuple(name for name in ALL if quantisation.scheme_of(name)) == quantised


def test_a_group_that_names_a_module_comes_before_one_that_means_all_linears() -> None:
    groups = {
        "group_0": group(FP8_BLOCK, format="float-quantized"),
        "group_1": group(NVFP4, r"re:.*\.mlp\.experts\..*", format="nvfp4-pack-quantized"),
    }
    quantisation = parse(block(groups, "mixed-precision"))
    assert quantisation.scheme_of(ROUTED) == Scheme(Form.NVFP4, 16)
    assert quantisation.scheme_of(SHARED) == Scheme(Form.FP8_BLOCK)
    assert quantisation.name == "fp8-block + nvfp4"


@pytest.mark.parametrize(
    ("changed", "key", "found"),
    [
        ({"quant_method": "gptq"}, "quant_method", "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quant_method", "fp8"),
        ({"format": "marlin-24"}, "format", "marlin-24"),
        ({"format": "pack-quantized"}, "format", "pack-quantized"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme", "num_bits"),
        ({"quantization_status": "frozen"}, "quantization_status", "frozen"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config", "config_groups"),
        ({"sparsity_config": {"format": "sparse-24"}}, "sparsity_config", "sparse-24"),
        ({"config_groups": {}}, "config_groups", "empty"),
        ({"config_groups": None}, "config_groups", "null"),
        ({"config_groups": ["FP8"]}, "config_groups", "FP8"),
        ({"ignore": ["re:(("]}, "ignore", "re:(("),
        ({"ignore": "lm_head"}, "ignore", "lm_head"),
    ],
)
def test_what_is_not_read_is_refused_by_key_with_what_was_found(
    changed: Mapping[str, object], key: str, found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**block({"group_0": group(FP8_BLOCK)}), **changed})
    assert caught.value.key == key
    assert found in caught.value.problem
    assert caught.value.supported


@pytest.mark.parametrize(
    ("weights", "file_format", "key"),
    [
        ({**INT4, "symmetric": False}, "pack-quantized", "symmetric"),
        ({**INT4, "actorder": "group"}, "pack-quantized", "actorder"),
        ({**INT4, "num_bits": 8}, "pack-quantized", "type"),
        ({**INT4, "strategy": "channel"}, "pack-quantized", "type"),
        ({**INT4, "group_size": None}, "pack-quantized", "group_size"),
        ({**FP8_BLOCK, "block_structure": [64, 64]}, "float-quantized", "block_structure"),
        ({**FP8_BLOCK, "dynamic": True}, "float-quantized", "dynamic"),
        ({**FP8_BLOCK, "codebook": "lloyd"}, "float-quantized", "codebook"),
        ({**NVFP4, "group_size": 32}, "nvfp4-pack-quantized", "group_size"),
        ({**NVFP4, "strategy": "group"}, "nvfp4-pack-quantized", "type"),
        (INT4, "nvfp4-pack-quantized", "format"),
    ],
)
def test_weights_of_another_kind_are_refused(
    weights: Mapping[str, object], file_format: str, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_one(weights, file_format)
    assert caught.value.key == key


def test_the_error_tells_which_kinds_are_read() -> None:
    with pytest.raises(ConfigError, match=r"int of 8 bits by channel.*float 8 bit by tensor"):
        parse_one({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized")


@pytest.mark.parametrize("target", ["Conv2d", "FusedMoE", "lm_head"])
def test_a_target_that_is_no_linear_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=target):
        parse(block({"group_0": group(FP8_BLOCK, "Linear", target)}))


def test_integer_weights_with_quantised_activations_are_refused() -> None:
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    groups = {"group_0": group(INT4, input_activations=inputs)}
    with pytest.raises(ConfigError, match="input_activations"):
        parse(block(groups, "pack-quantized"))


MODELOPT: dict[str, object] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


@pytest.mark.parametrize(
    ("excluded", "quantised"),
    [
        ([], ALL),
        (["lm_head", "*router*", "*.self_attn*"], (DENSE, SHARED, ROUTED)),
        (["model.layers.3.self_attn", "model.layers.0.mlp"], (SHARED, ROUTED)),
        (["model.layers.3.self_attn.q"], ALL),
        (["*mlp.gate.*"], ALL),
    ],
)
@pytest.mark.parametrize("key", ["ignore", "exclude_modules"])
def test_modelopt_excludes_by_wildcards_and_by_whole_modules(
    key: str, excluded: list[str], quantised: tuple[str, ...]
) -> None:
    quantisation = parse({**MODELOPT, key: excluded})
    assert tuple(name for name in ALL if quantisation.scheme_of(name)) == quantised
    assert quantisation.scheme_of(ROUTED) == Scheme(Form.NVFP4_MODELOPT, 16)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"quant_algo": "FP8"}, "quant_algo"),
        ({"quant_algo": "MIXED_PRECISION"}, "quant_algo"),
        ({"quant_algo": None}, "quant_algo"),
        ({"group_size": 32}, "group_size"),
        ({"kv_cache_quant_algo": "FP8"}, "kv_cache_quant_algo"),
        ({"quantized_layers": {"model.layers.3": {}}}, "quantized_layers"),
        ({"config_groups": {"g": {"weights": {"num_bits": 8}}}}, "num_bits"),
    ],
)
def test_what_modelopt_may_say_and_is_not_read_is_refused(
    changed: Mapping[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**MODELOPT, **changed})
    assert caught.value.key == key


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_modelopts_own_file_counts_where_config_json_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {})
    assert read_quantisation(tmp_path) is None
    quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}
    producer = {"name": "modelopt", "version": "0.41.0"}
    write(tmp_path, "hf_quant_config.json", {"producer": producer, "quantization": quantization})
    found = read_quantisation(tmp_path)
    assert found is not None
    assert found.name == "nvfp4-modelopt"
    write(tmp_path, "config.json", {"quantization_config": block({"g": group(FP8_BLOCK)})})
    found = read_quantisation(tmp_path)
    assert found is not None
    assert found.name == "fp8-block"


def test_equal_descriptions_have_equal_canonical_bytes_and_others_others() -> None:
    ours = parse_one(FP8_BLOCK, ignore=["lm_head", "re:a", "re:b"])
    same = parse_one({**FP8_BLOCK, "observer": "mse"}, ignore=["re:b", "re:a", "lm_head"])
    fewer = parse_one(FP8_BLOCK, ignore=["lm_head", "re:a"])
    assert ours.canonical() == same.canonical()
    assert ours.canonical() != fewer.canonical()
    assert ours.canonical() != parse_one(INT4, "pack-quantized").canonical()
