"""The `ray_config.yaml` of a layout, with what Ray reserves and what a rank may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator

from trinity_serve.planning.comparison import Comparison, LayoutPlan
from trinity_serve.planning.layouts import LayoutKind
from trinity_serve.planning.sizes import ModelSizes, WeightForm

_MIB = 2**20
_MAX_SEQUENCES = 4096
"""More in one rank than any step is likely to hold."""
_PREFILL_ROWS = 2048

_NOTES = {
    LayoutKind.COLOCATED: (
        "Half a GPU each: Ray puts two processes on one, but nothing yet makes it a rank and a",
        "shard. Look at the placement (trinity status, nvidia-smi) before relying on the memory.",
    ),
    LayoutKind.SEPARATE: ("A GPU of its own for every rank and every shard.",),
    LayoutKind.MIXED: (
        "Ranks on GPUs, shards on CPUs. Ranks refuse shards of another bit class, so that this",
        "needs one arithmetic on both sides; kernels are chosen once for all.",
    ),
}


def serve_file_text(found: Comparison, plan: LayoutPlan, model_path: str) -> str:
    """Return the Serve file of one of the plans found; it passes `trinity check`."""
    layout, context_tokens = plan.layout, found.workload.context_tokens
    per_rank = min(_MAX_SEQUENCES, max(1, -(-plan.streams // layout.num_ranks)))
    rows = max(_PREFILL_ROWS, per_rank)
    notes = "\n".join(f"# {line}" for line in (*_NOTES[layout.kind], *form_notes(found.sizes)))
    rank_gpus, shard_gpus = _gpus(layout.kind)
    kernels = "auto" if layout.kind is LayoutKind.MIXED else "cuda"
    two_batches = max(2, per_rank) if plan.step.micro_batches > 1 else "null"
    return f"""\
# Written by trinity plan: {layout.kind.value}, {layout.num_ranks} ranks, {layout.num_shards} \
shards, {plan.streams} sequences of {context_tokens} tokens.
{notes}
proxy_location: EveryNode
http_options:
  host: 127.0.0.1                 # 0.0.0.0 to be reached from outside, with security.api_keys_file
  port: 8000
  request_timeout_s: 600
applications:
- name: trinity
  route_prefix: /
  import_path: trinity_serve.app:build
  external_scaler_enabled: true
  deployments:
  - name: ExpertPool
    user_config:
      num_shards: {layout.num_shards}
      num_replicas: {layout.copies}
  args:
    model:
      path: {json.dumps(model_path)}
      kernels: {kernels}
      max_model_len: {context_tokens}
    attention:
      num_replicas: {layout.num_ranks}
      max_num_seqs: {per_rank}
      max_num_batched_tokens: {rows}
      max_prefill_chunk: {_PREFILL_ROWS}
      kv_memory_bytes: {int(plan.kv_room_bytes // _MIB)}MiB
      micro_batch_rows: {two_batches}
      resources:
        num_cpus: 1
        num_gpus: {rank_gpus}
    experts:
      transport: auto
      resources:
        num_cpus: 1
        num_gpus: {shard_gpus}
    ingress:
      num_replicas: {layout.num_nodes}
      resources:
        num_cpus: 1
"""


def form_notes(sizes: ModelSizes) -> Iterator[str]:
    """Yield what is counted on and not served yet."""
    if {sizes.experts, sizes.rest} != {WeightForm.BF16}:
        yield "Quantised weights are counted as stored. Loading widens them to bf16 so far, which"
        yield "takes the room of a plan with bf16."
    if sizes.kv_element_bytes == 1:
        yield "FP8 for KV is counted and not built: with bf16 half as many sequences fit."


def _gpus(kind: LayoutKind) -> tuple[str, str]:
    """Return what a rank and a shard reserve of a GPU."""
    return {
        LayoutKind.COLOCATED: ("0.5", "0.5"),
        LayoutKind.SEPARATE: ("1", "1"),
        LayoutKind.MIXED: ("1", "0"),
    }[kind]
