"""Our balancing against EPLB: near its evenness for a hundredth of its bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.bench_balance import LOADS, Eplb, Ours, simulate

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("load", LOADS)
def test_rows_are_nearly_as_even_as_eplbs_for_a_hundredth_of_the_bytes(load: str) -> None:
    ours, eplb, none = (simulate(load, way) for way in (Ours(1), Eplb(1), Ours(1, moves=False)))
    assert np.mean(ours.rows) <= 1.1 * np.mean(eplb.rows)
    assert np.mean(ours.rows) < np.mean(none.rows)
    assert ours.moved <= eplb.moved / 100
