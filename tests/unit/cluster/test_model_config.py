from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig, LayerType
from trinity_serve.synthetic import PRESETS
from trinity_serve.synthetic.hub_json import hub_config

LARGE = PRESETS["large"]

SHAPE_KEYS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_dense_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "num_shared_experts",
    "route_scale",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "max_position_embeddings",
    "mup_enabled",
    "dtype",
    "hidden_act",
    "tie_word_embeddings",
    "model_type",
]


def large_json(**changes: object) -> dict[str, object]:
    return {**hub_config(LARGE), **changes}


def read(content: dict[str, object]) -> AfmoeConfig:
    return AfmoeConfig.from_dict(content, "config.json")


def without(*keys: str) -> dict[str, object]:
    return {key: value for key, value in large_json().items() if key not in keys}


@pytest.mark.parametrize("name", PRESETS)
def test_a_hub_config_reads_back_as_the_preset(name: str) -> None:
    assert read(hub_config(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("key", SHAPE_KEYS)
def test_each_key_that_shapes_the_model_is_required(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: is missing"):
        read(without(key))


@pytest.mark.parametrize("key", ["hidden_size", "route_scale", "mup_enabled"])
def test_null_is_not_a_value_for_a_required_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: is null"):
        read(large_json(**{key: None}))


def test_keys_that_transformers_leaves_out_when_saving_may_be_absent() -> None:
    hard_coded = ("score_func", "route_norm", "n_group", "topk_group")
    limits = ("num_expert_groups", "num_limited_groups")
    assert read(without(*hard_coded, *limits)) == LARGE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", True),
        ("score_func", "softmax"),
        ("route_norm", False),
        ("n_group", 8),
        ("topk_group", 2),
        ("num_expert_groups", 4),
        ("num_limited_groups", 2),
        ("attention_bias", True),
        ("dtype", "float16"),
    ],
)
def test_what_is_not_computed_is_refused_with_key_and_value(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(large_json(**{key: value}))
    assert caught.value.key == key
    assert caught.value.supported
    assert json.dumps(value).strip('"') in caught.value.problem


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "default", "factor": 2.0},
        "yarn",
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaled_rotary_embedding_is_refused(key: str, scaling: object) -> None:
    with pytest.raises(ConfigError, match=key):
        read(large_json(**{key: scaling}))


def test_theta_is_read_from_rope_parameters_as_transformers_saves_it() -> None:
    parameters = {"rope_type": "default", "rope_theta": 5e5}
    assert read({**without("rope_theta"), "rope_parameters": parameters}).rope_theta == 5e5


def test_two_different_thetas_are_refused() -> None:
    with pytest.raises(ConfigError, match="rope_theta"):
        read(large_json(rope_parameters={"rope_theta": 5e5}))


def test_the_older_name_of_dtype_is_accepted() -> None:
    assert read({**without("dtype"), "torch_dtype": "float32"}).dtype == "float32"


def test_listed_layer_types_win_over_the_interval() -> None:
    irregular = ["full_attention", *["sliding_attention"] * 59]
    config = read(large_json(layer_types=irregular, global_attn_every_n_layers=2))
    assert [layer for layer in range(60) if config.is_global(layer)] == [0]


def test_without_a_list_every_nth_layer_is_global() -> None:
    config = read({**without("layer_types"), "global_attn_every_n_layers": 3})
    assert [layer for layer in range(10) if config.is_global(layer)] == [2, 5, 8]


def test_without_list_and_interval_the_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="global_attn_every_n_layers: is missing"):
        read(without("layer_types", "global_attn_every_n_layers"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", ["full_attention"] * 59),
        ("layer_types", "full_attention"),
        ("num_key_value_heads", 7),
        ("num_experts_per_tok", 257),
        ("num_dense_layers", 60),
        ("head_dim", 127),
        ("hidden_size", 0),
        ("hidden_size", -1),
        ("hidden_size", 3072.0),
        ("hidden_size", "3072"),
        ("num_experts", True),
        ("num_dense_layers", -1),
        ("num_shared_experts", 0),
        ("rms_norm_eps", 0),
        ("route_scale", float("inf")),
        ("route_scale", float("nan")),
        ("mup_enabled", 1),
        ("eos_token_id", 200_192),
        ("eos_token_id", [3, -1]),
        ("eos_token_id", []),
        ("bos_token_id", [0, 1]),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read(large_json(**{key: value}))
    assert caught.value.key == key


def test_an_unknown_layer_type_is_refused_with_its_position() -> None:
    types = [*["sliding_attention"] * 59, "chunked_attention"]
    with pytest.raises(ConfigError, match=r"layer_types\[59\].*chunked_attention"):
        read(large_json(layer_types=types))


def test_head_dim_is_never_derived_from_hidden_size() -> None:
    assert read(large_json()).head_dim == 128
    assert LARGE.hidden_size // LARGE.num_attention_heads == 64


def test_several_end_tokens_are_kept() -> None:
    assert read(large_json(eos_token_id=[3, 1])).eos_token_id == (3, 1)


def test_moe_layers_follow_the_dense_ones() -> None:
    assert LARGE.moe_layers == range(6, 60)
    assert LARGE.num_moe_layers == 54


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        AfmoeConfig.from_json(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        AfmoeConfig.from_json(tmp_path / "config.json")


NOT_ARITHMETIC = {"max_position_embeddings", "dtype", "bos_token_id", "eos_token_id"}

CHANGES: dict[type, Callable[[AfmoeConfig, str], object]] = {
    int: lambda config, name: getattr(config, name) + 1,
    float: lambda config, name: getattr(config, name) * 2,
    bool: lambda config, name: not getattr(config, name),
    tuple: lambda config, name: (LayerType.GLOBAL,) * config.num_hidden_layers,
}


@pytest.mark.parametrize(
    "name", [field.name for field in fields(AfmoeConfig) if field.name not in NOT_ARITHMETIC]
)
def test_the_fingerprint_changes_with_every_field_of_the_arithmetic(name: str) -> None:
    change = CHANGES[type(getattr(LARGE, name))](LARGE, name)
    changed = replace(LARGE, **{name: change})  # type: ignore[arg-type]
    assert changed.fingerprint("bfloat16") != LARGE.fingerprint("bfloat16")


def test_the_fingerprint_has_sixteen_bytes_and_knows_the_compute_dtype() -> None:
    assert len(LARGE.fingerprint("bfloat16")) == 16
    assert LARGE.fingerprint("bfloat16") != LARGE.fingerprint("float32")


def test_the_fingerprint_ignores_admission_limit_and_ids() -> None:
    raised = replace(LARGE, max_position_embeddings=524_288, eos_token_id=(1,))
    assert raised.fingerprint("bfloat16") == LARGE.fingerprint("bfloat16")
