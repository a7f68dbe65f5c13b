"""`config.json` and `generation_config.json` as the Hub has them for Trinity."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.model_config import AfmoeConfig

PAD_TOKEN_ID = 12


def write_json(path: Path, content: object) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hub_config(config: AfmoeConfig) -> dict[str, object]:
    """Return the published key set, group keys and training-only keys included.

    ``auto_map`` is left out: it names Python files of the model repository, and none are written.
    """
    eos = config.eos_token_id
    content: dict[str, object] = {
        "architectures": ["AfmoeForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "dtype": config.dtype,
        "eos_token_id": eos[0] if eos is not None and len(eos) == 1 else eos,
        "global_attn_every_n_layers": 4,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": [layer_type.value for layer_type in config.layer_types],
        "load_balance_coeff": 0.001,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "afmoe",
        "moe_intermediate_size": config.moe_intermediate_size,
        "mup_enabled": config.mup_enabled,
        "n_group": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_dense_layers": config.num_dense_layers,
        "num_expert_groups": 1,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_limited_groups": 1,
        "num_shared_experts": config.num_shared_experts,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "route_norm": True,
        "route_scale": config.route_scale,
        "score_func": "sigmoid",
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "transformers_version": "4.57.3",
        "use_cache": True,
        "use_grouped_mm": True,
        "vocab_size": config.vocab_size,
    }
    return {key: value for key, value in content.items() if value is not None or "_scal" in key}


def generation_config(config: AfmoeConfig) -> dict[str, object]:
    """Return Preview's sampling defaults with the configuration's own ids."""
    content = {
        "bos_token_id": config.bos_token_id,
        "do_sample": True,
        "eos_token_id": hub_config(config).get("eos_token_id"),
        "pad_token_id": PAD_TOKEN_ID if config.vocab_size > PAD_TOKEN_ID else None,
        "temperature": 0.8,
        "top_p": 0.8,
        "transformers_version": "4.57.3",
    }
    return {key: value for key, value in content.items() if value is not None}
