"""The structures that `kernels/cpu/src/segment.c` reads, field by field."""

from __future__ import annotations

import ctypes

_P, _I64, _F64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class AttentionSegment(ctypes.Structure):
    """struct ts_attention_segment."""

    _fields_ = (
        ("qkvg", _P),
        ("o", _P),
        ("q_norm", _P),
        ("k_norm", _P),
        ("post_norm", _P),
        ("next_norm", _P),
        ("rope", _P),
        ("kv", _P),
        ("max_positions", _I64),
        ("layer", _I64),
        ("window", _I64),
        ("hidden", _I64),
        ("num_heads", _I64),
        ("dtype", _I64),
        ("eps", _F64),
    )


class MoeSegment(ctypes.Structure):
    """struct ts_moe_segment."""

    _fields_ = (
        ("router", _P),
        ("bias", _P),
        ("post_norm", _P),
        ("next_norm", _P),
        ("experts", _I64),
        ("top_k", _I64),
        ("hidden", _I64),
        ("dtype", _I64),
        ("scale", _F64),
        ("eps", _F64),
    )


class SegmentRows(ctypes.Structure):
    """struct ts_segment_rows."""

    _fields_ = (
        ("positions", _P),
        ("slots", _P),
        ("query_start", _P),
        ("block_tables", _P),
        ("num_seqs", _I64),
        ("table_width", _I64),
        ("num_rows", _I64),
        ("qkvg", _P),
        ("q", _P),
        ("gated", _P),
        ("branch", _P),
    )


class CombineCall(ctypes.Structure):
    """struct ts_combine_call."""

    _fields_ = (
        ("rows", _P),
        ("row_of_slot", _P),
        ("weights", _P),
        ("shared", _P),
        ("out", _P),
        ("tokens", ctypes.c_long),
        ("top_k", ctypes.c_long),
        ("width", ctypes.c_long),
        ("num_rows", ctypes.c_long),
        ("dtype", ctypes.c_int),
    )
