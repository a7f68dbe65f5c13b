"""Names and shapes of every tensor of an AFMoE checkpoint in the Hub's layout.

All matrices are [out, in]. D hidden, F expert width. Experts are per expert and unfused;
`expert_bias` has no ``.weight`` suffix.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.model_config import AfmoeConfig

Shape = tuple[int, ...]


def expert_names(layer: int, expert: int) -> tuple[str, str, str]:
    """Return the names of an expert's gate (F, D), up (F, D) and down (D, F) matrices."""
    return swiglu_names(f"model.layers.{layer}.mlp.experts.{expert}")


def swiglu_names(prefix: str) -> tuple[str, str, str]:
    """Return gate, up and down under `prefix` (a dense MLP, shared experts or one expert)."""
    return (
        f"{prefix}.gate_proj.weight",
        f"{prefix}.up_proj.weight",
        f"{prefix}.down_proj.weight",
    )


def is_routed_expert(name: str) -> bool:
    """Whether the tensor belongs to a routed expert (not to a shared one)."""
    return ".mlp.experts." in name


def tensor_shapes(config: AfmoeConfig) -> Iterator[tuple[str, Shape]]:
    """Yield (name, shape) of every tensor, layer by layer, experts last in their layer."""
    vocabulary = (config.vocab_size, config.hidden_size)
    yield "model.embed_tokens.weight", vocabulary
    for layer in range(config.num_hidden_layers):
        yield from _layer_shapes(config, layer)
    yield "model.norm.weight", (config.hidden_size,)
    yield "lm_head.weight", vocabulary


def telltale_shapes(config: AfmoeConfig) -> Iterator[tuple[str, Shape]]:
    """Yield (name, shape) of small tensors that tell one trained checkpoint from another.

    All of them are in the last layer and behind it: few files are opened for them.
    """
    last = f"model.layers.{config.num_hidden_layers - 1}"
    yield "model.norm.weight", (config.hidden_size,)
    yield f"{last}.mlp.expert_bias", (config.num_experts,)
    yield f"{last}.post_mlp_layernorm.weight", (config.hidden_size,)
    yield f"{last}.self_attn.k_norm.weight", (config.head_dim,)


def telltale_matrix(config: AfmoeConfig) -> tuple[str, Shape]:
    """Return (name, shape) of one matrix of the last layer that every published form quantises."""
    gate, _, _ = expert_names(config.num_hidden_layers - 1, 0)
    return gate, (config.moe_intermediate_size, config.hidden_size)


def _layer_shapes(config: AfmoeConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    prefix = f"model.layers.{layer}"
    for norm in ("input", "post_attention", "pre_mlp", "post_mlp"):
        yield f"{prefix}.{norm}_layernorm.weight", (config.hidden_size,)
    yield from _attention_shapes(config, f"{prefix}.self_attn")
    if layer < config.num_dense_layers:
        yield from _swiglu_shapes(f"{prefix}.mlp", config.hidden_size, config.intermediate_size)
        return
    yield f"{prefix}.mlp.router.gate.weight", (config.num_experts, config.hidden_size)
    yield f"{prefix}.mlp.expert_bias", (config.num_experts,)
    shared = f"{prefix}.mlp.shared_experts"
    yield from _swiglu_shapes(shared, config.hidden_size, config.shared_intermediate_size)
    for expert in range(config.num_experts):
        routed = f"{prefix}.mlp.experts.{expert}"
        yield from _swiglu_shapes(routed, config.hidden_size, config.moe_intermediate_size)


def _attention_shapes(config: AfmoeConfig, prefix: str) -> Iterator[tuple[str, Shape]]:
    query = (config.num_attention_heads * config.head_dim, config.hidden_size)
    key = (config.num_key_value_heads * config.head_dim, config.hidden_size)
    yield f"{prefix}.q_proj.weight", query
    yield f"{prefix}.k_proj.weight", key
    yield f"{prefix}.v_proj.weight", key
    yield f"{prefix}.gate_proj.weight", query
    yield f"{prefix}.o_proj.weight", query[::-1]
    yield f"{prefix}.q_norm.weight", (config.head_dim,)
    yield f"{prefix}.k_norm.weight", (config.head_dim,)


def _swiglu_shapes(prefix: str, hidden_size: int, width: int) -> Iterator[tuple[str, Shape]]:
    gate, up, down = swiglu_names(prefix)
    yield gate, (width, hidden_size)
    yield up, (width, hidden_size)
    yield down, (hidden_size, width)
