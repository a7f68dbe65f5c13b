"""Load the model's compiled kernels and bind them to the process's one thread pool."""

from __future__ import annotations

import ctypes
from pathlib import Path

from experts.kernels.cpu.library import LIBRARY_DIR as EXPERT_LIBRARY_DIR
from experts.kernels.cpu.library import ExpertLibrary, Signatures, open_library

LIBRARY_DIR = Path(__file__).parent
LIBRARY_NAME = "_model.so"

_P = ctypes.c_void_p
_L = ctypes.c_long
_I = ctypes.c_int
_F = ctypes.c_float
_SIGNATURES: Signatures = {
    "ts_model_bind": (None, (_P,)),
    "ts_kv_new": (_P, (_L, _L, _L, _L, _I)),
    "ts_kv_free": (None, (_P,)),
    "ts_kv_bytes": (ctypes.c_size_t, (_P,)),
    "ts_rms_norm": (_I, (_P, _P, _P, _L, _L, _I, _F)),
    "ts_residual_norm": (_I, (_P, _P, _P, _P, _P, _P, _L, _L, _I, _F)),
    "ts_write_kv": (_I, (_P, _P, _P, _I, _F, _P, _P, _P, _L, _L, _P, _L, _P)),
    "ts_paged_attention": (_I, (_P, _P, _I, _P, _P, _P, _L, _L, _L, _P, _L, _L, _P)),
    "ts_gate_topk": (_I, (_P, _P, _L, _L, _L, _F, _P, _P)),
    "ts_combine": (_I, (_P, _P, _P, _P, _P, _L, _L, _L, _L, _I)),
    "ts_segment_attention": (_I, (_P, _P, _P, _P, _P, _P)),
    "ts_segment_route": (_I, (_P, _P, _L, _P, _P, _P)),
    "ts_segment_finish_moe": (_I, (_P, _P, _P, _P, _P)),
    "ts_plan_rows": (_I, (_P, _L, _L, _P, _L, _P)),
    "ts_embed": (_I, (_P, _P, _P, _L, _L, _L, _I, _F)),
    "ts_vocab_draw": (_I, (_P, _P, _P, _L, _L, _P)),
    "ts_vocab_argmax": (_I, (_P, _L, _L, _P)),
    "ts_vocab_log_sum_exp": (_I, (_P, _L, _L, _P, _P)),
}


class ModelLibrary:
    """The model ops' shared object; `experts` has the threads and the instruction set."""

    def __init__(
        self, library_dir: Path = LIBRARY_DIR, expert_library_dir: Path = EXPERT_LIBRARY_DIR
    ) -> None:
        self.experts = ExpertLibrary(expert_library_dir)
        self.c = open_library(library_dir / LIBRARY_NAME, _SIGNATURES)
        self.c.ts_model_bind(self.experts.c.ts_get_runtime())
