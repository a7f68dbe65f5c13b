"""Events and errors come back as they went, to the bit."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import CoverageLostError, MalformedFrameError, OverloadedError
from trinity_serve.api.event_codec import (
    RankFailedError,
    RankState,
    decode_error,
    decode_events,
    decode_state,
    encode_error,
    encode_events,
    encode_state,
)
from trinity_serve.engine.request import (
    EngineStats,
    FinishReason,
    RoutedExperts,
    TokenEvent,
    TokenLogprobs,
)

floats = st.floats(allow_nan=False)


@given(floats, st.lists(st.tuples(st.integers(0, 200_191), floats), max_size=5))
def test_an_event_with_logprobs_comes_back_bit_for_bit(
    chosen: float, top: list[tuple[int, float]]
) -> None:
    event = TokenEvent("r", 1, 2, 3, 4, TokenLogprobs(chosen, tuple(top)), num_cached_tokens=32)
    (again,) = decode_events(encode_events([event]))
    assert again == event
    assert again.logprobs is not None
    assert struct.pack("<d", again.logprobs.chosen) == struct.pack("<d", chosen)


def test_a_nan_survives() -> None:
    event = TokenEvent("r", 0, 0, 0, 1, TokenLogprobs(math.nan))
    (again,) = decode_events(encode_events([event]))
    assert again.logprobs is not None
    assert math.isnan(again.logprobs.chosen)


def test_what_is_told_of_prompts_and_routing_comes_back() -> None:
    scores = (TokenLogprobs(-0.5, ((7, -0.25),), 2), TokenLogprobs(-1.0, (), 9))
    routed = RoutedExperts(54, 4, bytes(range(16)))
    event = TokenEvent("r", 0, 0, 0, 1, prompt_logprobs=scores, routed_experts=routed)
    bare = TokenEvent("r", 0, 0, 0, 1, prompt_logprobs=())
    assert decode_events(encode_events([event, bare])) == [event, bare]


def test_an_end_carries_its_reason_and_a_typed_error() -> None:
    error = CoverageLostError(3, 64, 30.0)
    event = TokenEvent("r", 0, 0, 5, None, finish=FinishReason.ERROR, error=error)
    (again,) = decode_events(encode_events([event]))
    assert again.finish is FinishReason.ERROR
    assert isinstance(again.error, CoverageLostError)
    assert again.error.args == error.args


def test_an_error_outside_the_tree_travels_as_text() -> None:
    again = decode_error(encode_error(ValueError("boom")))
    assert isinstance(again, RankFailedError)
    assert str(again) == "ValueError: boom"
    assert str(decode_error(encode_error(again))) == "RankFailedError: ValueError: boom"


def test_no_class_outside_the_tree_is_made() -> None:
    assert isinstance(decode_error(["annotations", []]), RankFailedError)
    assert isinstance(decode_error(["OverloadedError", ["queue", 1, 2.0]]), OverloadedError)


@pytest.mark.parametrize("body", [b"", b"{}", b"[[1]]", b"[1]", b"\x80\x04K\x01."])
def test_what_is_no_event_message_is_refused_with_a_typed_error(body: bytes) -> None:
    with pytest.raises(MalformedFrameError):
        decode_events(body if body != b"{}" else b'{"a": 1')


def test_a_rank_state_comes_back() -> None:
    times, by_shard = {"queue": [5, 1]}, {"0": [1, 2]}
    stats = EngineStats(num_running=3, extra={"x": 1.0}, times=times, by_shard=by_shard)
    state = RankState(stats, "loading", "fp_00/x/1")
    assert decode_state(encode_state(state)) == state
