from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

from cluster.errors import InvalidRequestError
from tests.unit.trinity_serve.engine.fakes import FakeRunner, make_config, make_request
from trinity_serve.api.routing import npy_of
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import RoutedExperts
from trinity_serve.engine.routing import RoutedRows, check_report
from trinity_serve.model.batch import Int64


def ids(start: int, count: int) -> Int64:
    return np.arange(start * 2, (start + count) * 2, dtype=np.int64).reshape(count, 1, 2)


def told(rows: RoutedRows) -> list[int]:
    found = rows.take()
    return [] if found is None else np.frombuffer(found.ids, "<u2").reshape(-1, 2)[:, 0].tolist()


def test_each_row_is_told_once_however_often_it_is_computed() -> None:
    rows = RoutedRows(start=2)
    rows.add(0, ids(0, 1))
    assert told(rows) == []
    rows.add(1, ids(1, 4))
    assert told(rows) == [4, 6, 8]
    rows.add(0, ids(0, 4))
    rows.add(4, ids(4, 3))
    assert told(rows) == [10, 12]
    assert told(rows) == []


class Recorder:
    num_layers, top_k = 54, 4

    def recording(self) -> AbstractContextManager[None]:
        return nullcontext()

    def rows(self) -> Int64:
        return ids(0, 0)


def test_a_report_that_would_be_too_large_is_refused_with_what_is_allowed() -> None:
    recorder = Recorder()
    check_report(make_request(max_tokens=50_000), recorder)
    request = make_request(max_tokens=50_000, routed_experts_from=0)
    with pytest.raises(InvalidRequestError, match="50010 tokens were asked for; allowed: 19418"):
        check_report(request, recorder)
    later = make_request(max_tokens=50_000, routed_experts_from=40_000)
    check_report(later, recorder)


def test_an_engine_that_cannot_tell_refuses() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    with pytest.raises(InvalidRequestError, match="not supported by this engine"):
        engine.submit(make_request(routed_experts_from=0))


def test_many_experts_need_a_wider_type() -> None:
    wide = RoutedExperts(1, 2, np.array([1, 300], "<u2").tobytes())
    assert b"'<u2'" in npy_of([wide])
    narrow = RoutedExperts(1, 2, np.array([1, 255], "<u2").tobytes())
    assert b"'|u1'" in npy_of([narrow])
    assert npy_of([]) == b""
