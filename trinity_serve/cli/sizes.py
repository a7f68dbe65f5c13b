"""A model's sizes as lines of text, for `trinity checkpoint inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experts.dry_run import ShardLoad
from experts.quantised.layout import StoredLayout
from experts.tensor_names import tensor_shapes
from trinity_serve.model.describe import ModelDescription, ShardFit


def human_bytes(num_bytes: float) -> str:
    """Return a size with three digits and a decimal unit, e.g. ``797 GB``."""
    return f"{_scaled(num_bytes, ('B', 'kB', 'MB', 'GB', 'TB'))}"


def human_count(number: float) -> str:
    """Return a count with three digits and a unit, e.g. ``399 B`` (billions)."""
    return f"{_scaled(number, ('', 'K', 'M', 'B', 'T'))}".rstrip()


def shards_needed(description: ModelDescription, memory_gib: float) -> ShardFit | None:
    """Return the fewest shards whose largest slice fits into `memory_gib`, or None."""
    limit_bytes = memory_gib * 2**30
    return next((fit for fit in description.shards if fit.num_bytes <= limit_bytes), None)


def description_lines(
    model: str, description: ModelDescription, memory_gib: float
) -> Iterator[str]:
    """Yield what `inspect` prints. `description.shards` holds every count from one upwards."""
    yield from _shape(model, description)
    yield ""
    yield from _parts(description)
    yield ""
    yield from _places(description, memory_gib)


def stored_line(layout: StoredLayout) -> str:
    """Return what is on disk of a quantised checkpoint; all sizes above are those when loaded."""
    stored = sum(layout.stored_bytes(*each) for each in tensor_shapes(layout.config))
    name = "" if layout.quantisation is None else layout.quantisation.name
    return (
        f"on disk {human_bytes(stored)} as {name}, dequantised to {layout.config.dtype} on loading"
    )


def load_lines(loads: Sequence[ShardLoad]) -> Iterator[str]:
    """Yield what `dry-run` prints: one line per shard."""
    for load in loads:
        yield (
            f"shard {load.index:>3}  {load.num_experts} experts, reads "
            f"{human_bytes(load.read_bytes)} in {load.num_ranges} ranges of "
            f"{load.num_files} files, holds {human_bytes(load.held_bytes)}"
        )


def _shape(model: str, description: ModelDescription) -> Iterator[str]:
    config = description.config
    num_global = sum(config.is_global(layer) for layer in range(config.num_hidden_layers))
    yield (
        f"{model}: AFMoE in {config.dtype}, {human_count(description.num_parameters)} parameters, "
        f"{human_bytes(description.num_bytes)}; "
        f"{human_count(description.active_parameters)} parameters read per token"
    )
    yield (
        f"layers   {config.num_hidden_layers}: {config.num_dense_layers} dense, "
        f"{config.num_moe_layers} with experts; {num_global} global, "
        f"{config.num_hidden_layers - num_global} with a window of {config.sliding_window}"
    )
    yield (
        f"experts  {config.num_experts} per layer, {config.num_experts_per_tok} per token, "
        f"{config.num_shared_experts} shared; {human_bytes(description.bytes_per_expert)} each"
    )
    yield f"context  {config.max_position_embeddings} tokens, vocabulary {config.vocab_size}"


def _parts(description: ModelDescription) -> Iterator[str]:
    for part in sorted(description.components, key=lambda part: -part.num_bytes):
        share = 100 * part.num_bytes / description.num_bytes
        yield (
            f"{part.name:<16} {human_count(part.num_parameters):>8} "
            f"{human_bytes(part.num_bytes):>9} {share:5.1f} %"
        )


def _places(description: ModelDescription, memory_gib: float) -> Iterator[str]:
    yield (
        f"attention rank   {human_bytes(description.rank_bytes)}, and for KV "
        f"{human_bytes(description.global_kv_bytes_per_token)} per token plus at most "
        f"{human_bytes(description.sliding_kv_bytes_per_sequence)} per sequence"
    )
    for fit in description.shards:
        if fit.num_shards & (fit.num_shards - 1) == 0:
            yield (
                f"{fit.num_shards:>3} shard{'s' if fit.num_shards > 1 else ' '}       "
                f"{human_bytes(fit.num_bytes)} each: {fit.experts_per_layer} experts per layer"
            )
    needed = shards_needed(description, memory_gib)
    answer = f"{needed.num_shards} or more" if needed else "not even one expert per layer fits"
    yield f"with {memory_gib:g} GiB per shard: {answer}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    step = 0
    while number >= 999.5 and step < len(units) - 1:
        number /= 1000
        step += 1
    return f"{number:.3g} {units[step]}"
