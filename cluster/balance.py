"""Moves that even out load: few, only when they pay, and no faster than allowed.

Three things are weighed, which EPLB leaves out. A plan is changed by exchanges of the present one
and never made anew, since a move reads an expert's weights. Nothing is done while the busiest seat
is within `margin` of the mean, and every exchange has to lower the peak by `min_gain`. Moves are
paid from a budget in bytes per second. Copies stay apart: no seat ever holds two of one expert, and
no exchange brings copies onto one node or label that were on two.

L layers, E experts, R copies (-1 for none), S seats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.load_stats import LoadLE
from cluster.planner import Seat

Int32 = npt.NDArray[np.int32]


@dataclass
class ByteBudget:
    """A token bucket of bytes to move. Time is passed in."""

    bytes_per_s: float
    burst_bytes: float
    _bytes: float = 0.0
    _at_s: float = 0.0

    def available(self, now_s: float) -> float:
        """Return how many bytes may be moved now."""
        grown = self._bytes + max(0.0, now_s - self._at_s) * self.bytes_per_s
        self._bytes, self._at_s = min(self.burst_bytes, grown), max(self._at_s, now_s)
        return self._bytes

    def spend(self, num_bytes: float) -> None:
        """Take what was moved."""
        self._bytes -= num_bytes


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    """When a move pays. `call_rows` is what reading an expert's weights costs, in rows.

    `margin`: begin above so many times the mean. `min_gain`: share of the mean by which an exchange
    has to lower the two seats' peak. `max_exchanges`: of one layer in one plan.
    """

    margin: float = 1.15
    min_gain: float = 0.02
    call_rows: float = 0.0
    max_exchanges: int = 32


def seat_loads(cost_E: npt.NDArray[np.float64], plan_ER: Int32, num_seats: int) -> LoadLE:
    """Return (S,) the load of each seat, primaries taking all: decode sends to one sticky copy."""
    load_S = np.bincount(plan_ER[:, 0], weights=cost_E, minlength=num_seats)
    return load_S.astype(np.float64)


def rebalance(
    plan_LER: Int32,
    load_LE: LoadLE,
    seats: Sequence[Seat],
    max_moves: int,
    config: BalanceConfig | None = None,
) -> tuple[Int32, int]:
    """Return a plan with a lower peak, and how many copies it moves (at most `max_moves`).

    Layers with most to gain come first. Turning to another copy that is there already moves
    nothing, and is tried before exchanges.

    Args:
        plan_LER: (L, E, R) seats, 0 to S-1, primary first, then -1 where there are fewer copies.
        load_LE: decayed rows; only their proportions count.
        seats: all of them, in the order of their indexes.
        max_moves: what the byte budget allows.
        config: when a move pays.
    """
    config = config or BalanceConfig()
    plan_LER, num_seats, shares_SS = plan_LER.copy(), len(seats), shares_of(seats)
    loads = [seat_loads(load_LE[each], plan_LER[each], num_seats) for each in range(len(plan_LER))]
    excess = [float(load_S.max() - load_S.mean()) for load_S in loads]
    num_moves = 0
    for layer in np.argsort(-np.array(excess), kind="stable").tolist():
        cost_E = load_LE[layer] + config.call_rows * (load_LE[layer] > 0)
        work = _Layer(plan_LER[layer], cost_E, shares_SS, config)
        work.turn_to_copies()
        num_moves += work.exchange(max_moves - num_moves)
    return plan_LER, num_moves


def shares_of(seats: Sequence[Seat]) -> npt.NDArray[np.int64]:
    """Return (S + 1, S + 1) how bad copies at two seats are; 0 in the row that -1 reads."""
    shares_SS = np.zeros((len(seats) + 1, len(seats) + 1), np.int64)
    for one in seats:
        for other in seats:
            if one.index != other.index:
                shares_SS[one.index, other.index] = one.shares(other)
    return shares_SS


class _Layer:
    """Works on one layer's (E, R) plan in place."""

    def __init__(
        self,
        plan_ER: Int32,
        cost_E: npt.NDArray[np.float64],
        shares_SS: npt.NDArray[np.int64],
        config: BalanceConfig,
    ) -> None:
        self._plan_ER, self._cost_E, self._config = plan_ER, cost_E, config
        self._shares_SS = shares_SS
        self._load_S = seat_loads(cost_E, plan_ER, len(shares_SS) - 1)
        self._mean = float(self._load_S.mean())

    def _within_margin(self) -> bool:
        return bool(self._load_S.max() <= self._config.margin * self._mean)

    def turn_to_copies(self) -> None:
        """Let other copies of the busiest seat's experts be primary, while that lowers the peak."""
        if self._plan_ER.shape[1] == 1:
            return
        for _ in range(len(self._plan_ER)):
            busiest = int(self._load_S.argmax())
            if self._within_margin() or not self._turn_one(busiest):
                return

    def _turn_one(self, busiest: int) -> bool:
        mine_E = np.flatnonzero(self._plan_ER[:, 0] == busiest)
        others_ER = self._plan_ER[mine_E, 1:]
        after_ER = self._load_S[others_ER] + self._cost_E[mine_E, None]
        peaks_ER = np.maximum(after_ER, self._load_S[busiest] - self._cost_E[mine_E, None])
        peaks_ER[(self._cost_E[mine_E] == 0)[:, None] | (others_ER < 0)] = np.inf
        if peaks_ER.size == 0 or not self._pays(busiest, float(peaks_ER.min())):
            return False
        row, rank = np.unravel_index(int(peaks_ER.argmin()), peaks_ER.shape)
        expert, other = int(mine_E[row]), int(others_ER[row, rank])
        self._plan_ER[expert, 0], self._plan_ER[expert, 1 + int(rank)] = other, busiest
        self._shift(busiest, other, float(self._cost_E[expert]))
        return True

    def _pays(self, busiest: int, peak: float) -> bool:
        return bool(peak < self._load_S[busiest] - self._config.min_gain * self._mean)

    def _shift(self, source: int, target: int, cost: float) -> None:
        self._load_S[source] -= cost
        self._load_S[target] += cost

    def exchange(self, max_moves: int) -> int:
        """Exchange experts of the busiest seat with lighter ones of others; return the moves."""
        num_moves = 0
        for _ in range(self._config.max_exchanges):
            busiest = int(self._load_S.argmax())
            if self._within_margin() or num_moves + 2 > max_moves:
                break
            if not any(self._exchange_one(busiest, int(t)) for t in np.argsort(self._load_S)[:3]):
                break
            num_moves += 2
        return num_moves

    def _exchange_one(self, busiest: int, target: int) -> bool:
        """Exchange the pair of primaries that lowers the peak of the two seats most."""
        plan_ER, cost_E = self._plan_ER, self._cost_E
        holds = (plan_ER == busiest).any(axis=1), (plan_ER == target).any(axis=1)
        give_E = np.flatnonzero((plan_ER[:, 0] == busiest) & ~holds[1])
        take_E = np.flatnonzero((plan_ER[:, 0] == target) & ~holds[0])
        give_E = give_E[self._stay_apart(give_E, busiest, target)]
        take_E = take_E[self._stay_apart(take_E, target, busiest)]
        if target == busiest or not len(give_E) or not len(take_E):
            return False
        difference = cost_E[give_E][:, None] - cost_E[take_E][None, :]
        peaks = np.maximum(self._load_S[busiest] - difference, self._load_S[target] + difference)
        if not self._pays(busiest, float(peaks.min())):
            return False
        row, column = np.unravel_index(int(peaks.argmin()), peaks.shape)
        plan_ER[give_E[row], 0], plan_ER[take_E[column], 0] = target, busiest
        self._shift(busiest, target, float(difference[row, column]))
        return True

    def _stay_apart(
        self, expert_N: npt.NDArray[np.int64], source: int, target: int
    ) -> npt.NDArray[np.bool_]:
        """(N,): whether at `target` the primary shares no more with its copies than at `source`."""
        others_NR = self._plan_ER[expert_N, 1:]
        shares_SS = self._shares_SS
        there_N = shares_SS[target][others_NR].sum(axis=1)
        return np.asarray(there_N <= shares_SS[source][others_NR].sum(axis=1))
