"""Routed experts in vLLM's form: a .npy file of (rows, MoE layers, top k), in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from trinity_serve.engine.request import RoutedExperts


def npy_of(parts: Sequence[RoutedExperts]) -> bytes:
    """Return the file with all parts, in the smallest type that holds the ids; empty: no parts."""
    if not parts:
        return b""
    ids = np.frombuffer(b"".join(part.ids for part in parts), "<u2")
    rows_RLK = ids.reshape(-1, parts[0].num_layers, parts[0].top_k)
    file = io.BytesIO()
    kind = np.min_scalar_type(int(rows_RLK.max(initial=0)))
    np.save(file, rows_RLK.astype(kind), allow_pickle=False)
    return file.getvalue()


def routing_fields(npy: bytes) -> dict[str, object]:
    """Return what a choice's fields are extended by."""
    return {"routed_experts": base64.b64encode(npy).decode()} if npy else {}
