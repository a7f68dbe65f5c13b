from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from trinity_serve.model.generation_config import GenerationDefaults


def load(folder: Path, config: AfmoeConfig, **content: object) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return GenerationDefaults.load(folder, config)


def test_the_published_defaults_of_preview_are_read(
    tiny_checkpoint: Path, tiny_config: AfmoeConfig
) -> None:
    assert GenerationDefaults.load(tiny_checkpoint, tiny_config) == GenerationDefaults(
        temperature=0.8, top_p=0.8, eos_token_ids=(3,), bos_token_id=0, pad_token_id=12
    )


def test_the_published_defaults_of_mini_are_read(tmp_path: Path, tiny_config: AfmoeConfig) -> None:
    defaults = load(tmp_path, tiny_config, temperature=0.15, top_k=50, top_p=0.75, min_p=0.06)
    assert (defaults.temperature, defaults.top_k) == (0.15, 50)
    assert (defaults.top_p, defaults.min_p) == (0.75, 0.06)


def test_without_the_file_no_filter_is_on_and_ids_come_from_the_config(
    tmp_path: Path, tiny_config: AfmoeConfig
) -> None:
    config = replace(tiny_config, eos_token_id=(3, 1))
    assert GenerationDefaults.load(tmp_path, config) == GenerationDefaults(
        eos_token_ids=(3, 1), bos_token_id=0
    )


def test_the_file_wins_over_the_config_for_end_tokens(
    tmp_path: Path, tiny_config: AfmoeConfig
) -> None:
    assert load(tmp_path, tiny_config, eos_token_id=[4, 5]).eos_token_ids == (4, 5)


def test_an_explicit_do_sample_false_is_greedy(tmp_path: Path, tiny_config: AfmoeConfig) -> None:
    assert load(tmp_path, tiny_config, do_sample=False, temperature=0.8).temperature == 0.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2),
        ("eos_token_id", 512),
        ("eos_token_id", "</s>"),
        ("pad_token_id", 512),
        ("do_sample", "yes"),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_key(
    tmp_path: Path, tiny_config: AfmoeConfig, key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, tiny_config, **{key: value})
    assert caught.value.key == key
