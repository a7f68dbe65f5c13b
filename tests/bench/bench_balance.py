"""What balancing is worth and what it costs: EPLB against ours, over loads that stay and change.

`python -m tests.bench.bench_balance`: one JSON line per load, number of copies and way. Simulated:
no shard runs. Each window is planned from what was seen before it, and judged by its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.balance import ByteBudget, rebalance
from cluster.eplb import plan_eplb
from cluster.load_stats import LoadStats
from cluster.planner import Seat, plan_copies
from tests.bench.report import Figure, Machine, report

NUM_LAYERS, NUM_EXPERTS, TOP_K, NUM_SEATS = 4, 256, 4, 8
SEATS = [Seat(index) for index in range(NUM_SEATS)]
WINDOW_S, NUM_WINDOWS, STEPS, TOKENS = 60.0, 20, 40, 64
EXPERT_BYTES = 3 * 3072 * 3072 * 2
BYTES_PER_S = 8 * EXPERT_BYTES / WINDOW_S
"""Ours may move eight experts a window, all layers together."""

Weights = npt.NDArray[np.float64]
Copies = npt.NDArray[np.float64]
"""(L, S, E): the share of an expert's rows that a seat gets; 0 where there is no copy."""
Ids = npt.NDArray[np.int64]


def zipf(random: np.random.Generator) -> Iterator[Weights]:
    """The same few experts are hot for ever, others in each layer."""
    ranks_LE = np.stack([random.permutation(NUM_EXPERTS) for _ in range(NUM_LAYERS)])
    while True:
        yield np.asarray(1.0 / (1.0 + ranks_LE) ** 0.8, np.float64)


def drifting(random: np.random.Generator) -> Iterator[Weights]:
    """Each window a twentieth of the experts change places."""
    weights_LE = next(zipf(random))
    while True:
        yield weights_LE
        weights_LE = weights_LE.copy()
        for weights_E in weights_LE:
            some = random.choice(NUM_EXPERTS, NUM_EXPERTS // 20, replace=False)
            weights_E[some] = weights_E[random.permutation(some)]


def adversarial(random: np.random.Generator) -> Iterator[Weights]:
    """What is hot now is cold in the next window: whoever runs after it always is late."""
    weights_LE = next(zipf(random))
    while True:
        yield weights_LE
        yield weights_LE[:, ::-1]


LOADS: dict[str, Callable[[np.random.Generator], Iterator[Weights]]] = {
    "zipf": zipf,
    "drifting": drifting,
    "adversarial": adversarial,
}


def draw_steps(weights_LE: Weights, random: np.random.Generator) -> Ids:
    """Return (L, steps, tokens, K): without replacement, by the Gumbel trick."""
    shape = (STEPS, TOKENS, NUM_EXPERTS)
    ids = [
        np.argpartition(-(np.log(weights_E) + random.gumbel(size=shape)), TOP_K, axis=2)
        for weights_E in weights_LE
    ]
    return np.stack(ids)[..., :TOP_K]


@dataclass
class Outcome:
    """Means over windows, layers and steps of max/mean over seats; bytes in all."""

    rows: list[float] = field(default_factory=list)
    activated: list[float] = field(default_factory=list)
    most_activated: list[float] = field(default_factory=list)
    moved: int = 0

    def judge(self, copies_LSE: Copies, ids: Ids) -> None:
        """Hold a plan to a window."""
        for layer, steps in enumerate(ids):
            rows_NE = np.stack([np.bincount(s.ravel(), minlength=NUM_EXPERTS) for s in steps])
            share_SE = copies_LSE[layer]
            rows_NS = rows_NE @ share_SE.T
            active_NS = (rows_NE > 0).astype(np.float64) @ (share_SE > 0).T
            self.rows.append(float((rows_NS.max(axis=1) / rows_NS.mean(axis=1)).mean()))
            self.most_activated.append(float(active_NS.max(axis=1).mean()))
            self.activated.append(float((active_NS.max(axis=1) / active_NS.mean(axis=1)).mean()))

    def figures(self, **labels: str | int) -> Iterator[Figure]:
        """Yield what is reported."""
        yield Figure("balance_rows_max_over_mean", float(np.mean(self.rows)), "ratio", labels)
        active = float(np.mean(self.activated))
        yield Figure("balance_activated_max_over_mean", active, "ratio", labels)
        most = float(np.mean(self.most_activated))
        yield Figure("balance_most_activated", most, "experts", labels)
        yield Figure("balance_moved", self.moved * EXPERT_BYTES / 1e9, "GB", labels)


class Eplb:
    """Plans anew in each window; an expert's rows are shared by its copies."""

    def __init__(self, num_replicas: int) -> None:
        self._slots = NUM_EXPERTS * num_replicas
        self._held = np.zeros((NUM_LAYERS, NUM_SEATS, NUM_EXPERTS), np.bool_)

    def plan(self, stats: LoadStats, now_s: float) -> tuple[Copies, int]:
        """Return the copies, and how many were not where they are before."""
        copies_LSE = plan_eplb(stats.rows_LE, NUM_SEATS, self._slots).astype(np.float64)
        moved = int(((copies_LSE > 0) & ~self._held).sum()) if self._held.any() else 0
        self._held = copies_LSE > 0
        return copies_LSE / copies_LSE.sum(axis=1, keepdims=True), moved


class Ours:
    """Changes the plan it has; an expert's rows go to its primary."""

    def __init__(self, num_replicas: int, moves: bool = True) -> None:
        self._plan_LER = plan_copies(SEATS, num_replicas, (NUM_LAYERS, NUM_EXPERTS))
        self._budget = ByteBudget(BYTES_PER_S, 4 * WINDOW_S * BYTES_PER_S)
        self._moves = moves

    def plan(self, stats: LoadStats, now_s: float) -> tuple[Copies, int]:
        """Return the primaries, and how many copies move."""
        moved = 0
        if self._moves:
            allowed = int(self._budget.available(now_s) / EXPERT_BYTES)
            self._plan_LER, moved = rebalance(self._plan_LER, stats.rows_LE, SEATS, allowed)
            self._budget.spend(moved * EXPERT_BYTES)
        primary_LE = self._plan_LER[:, :, 0]
        seats_S = np.arange(NUM_SEATS)
        return (primary_LE[:, None, :] == seats_S[:, None]).astype(np.float64), moved


def simulate(load: str, way: Eplb | Ours, seed: int = 0) -> Outcome:
    """Run one way of balancing over one load."""
    random = np.random.default_rng(seed)
    weights = LOADS[load](random)
    stats = LoadStats(NUM_LAYERS, NUM_EXPERTS, half_life_s=WINDOW_S)
    outcome = Outcome()
    for window in range(NUM_WINDOWS):
        ids = draw_steps(next(weights), random)
        now_s = (1 + window) * WINDOW_S
        if window > 0:
            copies_LSE, moved = way.plan(stats, now_s)
            outcome.judge(copies_LSE, ids)
            outcome.moved += moved
        for layer, steps in enumerate(ids):
            stats.observe(layer, steps)
        stats.age(now_s)
    return outcome


def ways(num_replicas: int) -> dict[str, Eplb | Ours]:
    """What is compared."""
    return {
        "eplb": Eplb(num_replicas),
        "ours": Ours(num_replicas),
        "none": Ours(num_replicas, moves=False),
    }


def main() -> None:
    """Report every load, number of copies and way."""
    machine = Machine.here()
    for load in LOADS:
        for num_replicas in (1, 2):
            for name, way in ways(num_replicas).items():
                for figure in simulate(load, way).figures(rows=load, copies=num_replicas, way=name):
                    report(machine, figure)


if __name__ == "__main__":
    main()
