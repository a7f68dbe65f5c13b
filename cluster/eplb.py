"""The balancing that others use, as a baseline: equal-count packing of replicated experts.

Source: the algorithm of DeepSeek's EPLB in its global mode, written from its description. It looks
at the load alone: what is held now, and what a loss would cost, play no part.

L layers, E experts, P slots (copies of experts), S seats with P/S slots each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cluster.load_stats import LoadLE

Int32 = npt.NDArray[np.int32]


def pack_evenly(weights: npt.NDArray[np.float64], num_packs: int) -> npt.NDArray[np.int64]:
    """Return each item's pack: heaviest first, into the lightest pack that still has room.

    Raises ValueError unless the packs can all have the same number of items.
    """
    room, left = divmod(len(weights), num_packs)
    if left:
        raise ValueError(f"{len(weights)} items do not fill {num_packs} packs evenly")
    pack_of = np.empty(len(weights), np.int64)
    load, count = np.zeros(num_packs), np.zeros(num_packs, np.int64)
    for item in np.argsort(-weights, kind="stable"):
        pack = int(np.argmin(np.where(count < room, load, np.inf)))
        pack_of[item] = pack
        load[pack] += weights[item]
        count[pack] += 1
    return pack_of


def replicate(load_E: npt.NDArray[np.float64], num_slots: int) -> npt.NDArray[np.int64]:
    """Return each slot's expert: one each, then always to the largest load per copy."""
    experts = list(range(len(load_E)))
    copies = np.ones(len(load_E), np.int64)
    for _ in range(num_slots - len(load_E)):
        expert = int(np.argmax(load_E / copies))
        experts.append(expert)
        copies[expert] += 1
    return np.array(experts, np.int64)


def plan_eplb(load_LE: LoadLE, num_seats: int, num_slots: int) -> npt.NDArray[np.int64]:
    """Return (L, S, E) how many copies of each expert each seat holds."""
    num_layers, num_experts = load_LE.shape
    copies_LSE = np.zeros((num_layers, num_seats, num_experts), np.int64)
    for layer, load_E in enumerate(load_LE):
        expert_P = replicate(load_E, num_slots)
        copies_E = np.bincount(expert_P, minlength=num_experts)
        seat_P = pack_evenly(load_E[expert_P] / copies_E[expert_P], num_seats)
        np.add.at(copies_LSE[layer], (seat_P, expert_P), 1)
    return copies_LSE
