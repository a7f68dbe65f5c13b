"""`ModelKernels` in Triton: checks on the host, then launches; nothing waits for the device.

T rows, B sequences, M block-table columns, H query heads, K KV heads, d head_dim, X = H*d.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cluster.errors import ConfigError, KernelInputError
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView
from trinity_serve.model.kernels.base import AttentionShape
from trinity_serve.model.kernels.cpu.checks import check_tensor
from trinity_serve.model.kernels.cuda.attention_call import AttentionCall, rows_per_block
from trinity_serve.model.kernels.cuda.attention_plan import AttentionPlan, plan_attention
from trinity_serve.model.kernels.cuda.cache import CudaKv
from trinity_serve.model.kernels.cuda.row_ops import CudaRowOps, check_indices
from trinity_serve.model.kernels.cuda.step_memory import Remembered
from trinity_serve.model.kernels.cuda.write_kv import write_kv_kernel

_PROGRAMS_PER_PROCESSOR = 2
"""With fewer whole blocks of rows than this, chunks of KV get programs of their own."""
_ROWS_INTERPRETED = 16


class CudaModelKernels(CudaRowOps):
    """`ModelKernels` on a CUDA device, or on CPU tensors through Triton's interpreter."""

    name = "cuda"

    def __init__(self) -> None:
        super().__init__(find_device())
        self._plans: Remembered[AttentionPlan] = Remembered()
        self.programs_wanted = _PROGRAMS_PER_PROCESSOR * _num_processors(self.device)

    def new_kv_cache(
        self, num_layers: int, num_blocks: int, shape: AttentionShape, dtype: torch.dtype
    ) -> CudaKv:
        """Allocate a pool's cache, zeroed."""
        return CudaKv.zeros(num_layers, num_blocks, shape, dtype, self.device)

    def write_kv(
        self,
        qkvg_TX: Tensor,
        q_norm_d: Tensor,
        k_norm_d: Tensor,
        shape: AttentionShape,
        positions_T: Int64,
        rope: Tensor | None,
        view: KvView,
        cache: CudaKv,
        layer: int,
    ) -> Tensor:
        """See `ModelKernels.write_kv`."""
        num_rows, d, dtype = qkvg_TX.shape[0], shape.head_dim, cache.keys.dtype
        cache.check_layer(layer, shape)
        check_tensor("qkvg", qkvg_TX, (num_rows, shape.qkvg_width), dtype)
        check_tensor("q_norm", q_norm_d, (d,), dtype)
        check_tensor("k_norm", k_norm_d, (d,), dtype)
        slots = self._slots(positions_T, rope, view, cache)
        q_TX = torch.empty((num_rows, shape.num_heads * d), dtype=dtype, device=self.device)
        if num_rows == 0:
            return q_TX
        heads = triton.next_power_of_2(shape.num_heads + shape.num_kv_heads)
        rows = _ROWS_INTERPRETED if self.device.type == "cpu" else 1
        write_kv_kernel[(triton.cdiv(num_rows, rows),)](
            qkvg_TX,
            q_norm_d,
            k_norm_d,
            self.on_device(positions_T),
            slots,
            q_norm_d if rope is None else rope,
            q_TX,
            cache.keys[layer],
            cache.values[layer],
            num_rows,
            shape.rms_norm_eps,
            shape.num_heads,
            shape.num_kv_heads,
            d,
            KV_BLOCK_SIZE,
            rows,
            rope is not None,
            heads,
            triton.next_power_of_2(shape.num_kv_heads),
            triton.next_power_of_2(d),
            num_warps=8 if heads * d >= 4096 else 4,
            enable_fp_fusion=False,
        )
        return q_TX

    def _slots(
        self, positions_T: Int64, rope: Tensor | None, view: KvView, cache: CudaKv
    ) -> Tensor:
        """Return the slots on the device; they and the positions are checked when first seen."""

        def checked() -> Tensor:
            if len(positions_T) != len(view.slot_mapping_T):
                expected = f"one for each of {len(positions_T)} rows"
                raise KernelInputError("slot_mapping", f"{len(view.slot_mapping_T)}", expected)
            check_indices("slot_mapping", view.slot_mapping_T, cache.num_blocks * KV_BLOCK_SIZE)
            if rope is not None:
                check_tensor("rope", rope, (rope.shape[0], cache.shape.head_dim), torch.float32)
                check_indices("positions", positions_T, rope.shape[0])
            return self.on_device(view.slot_mapping_T)

        return self._arrays.of((view.slot_mapping_T, cache.keys, positions_T, rope), checked)

    def paged_attention(
        self,
        q_TX: Tensor,
        qkvg_TX: Tensor,
        shape: AttentionShape,
        batch: ForwardBatch,
        view: KvView,
        cache: CudaKv,
        layer: int,
        window: int | None,
    ) -> Tensor:
        """See `ModelKernels.paged_attention`."""
        num_rows, dtype = q_TX.shape[0], cache.keys.dtype
        cache.check_layer(layer, shape)
        check_tensor("q", q_TX, (num_rows, shape.num_heads * shape.head_dim), dtype)
        check_tensor("qkvg", qkvg_TX, (num_rows, shape.qkvg_width), dtype)
        group = shape.num_heads // shape.num_kv_heads
        block_rows = rows_per_block(num_rows, len(batch.query_start_B1) - 1, group)
        sizes = (cache.num_blocks, block_rows // group)
        plan = self._plans.of(
            (batch, view, cache.keys, window),
            lambda: plan_attention(batch, view.block_tables_BM, window, sizes, self.device),
        )
        out_TX = torch.empty_like(q_TX)
        if num_rows:
            call = AttentionCall(q_TX, qkvg_TX, out_TX, cache, layer, plan, window or 0, block_rows)
            call.run(self.programs_wanted)
        return out_TX


def find_device() -> torch.device:
    """Return the CUDA device, or the CPU under the interpreter.

    Raises:
        ConfigError: there is neither.
    """
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "kernels",
            "cuda",
            f"finds no CUDA device (torch {torch.__version__})",
            "a CUDA device, or Triton's interpreter on the CPU (TRITON_INTERPRET=1), for tests",
        )
    return torch.device("cuda", torch.cuda.current_device())


def _num_processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
