"""Random loads on random small engines: outputs never change, and nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import OverloadedError, ShardFailedError
from tests.unit.trinity_serve.engine.fakes import (
    VOCAB_SIZE,
    FakeRunner,
    finishes,
    make_config,
    outputs,
    undisturbed,
)
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)

# Prompts are cut from two long texts, so that prefixes are shared often.
TEXTS = [tuple((idx * idx + 7 * idx + text) % VOCAB_SIZE for idx in range(300)) for text in (0, 1)]


@dataclass(frozen=True)
class Arrival:
    """A request, when it comes, and when (if ever) it is cancelled or replayed."""

    step: int
    request: GenerationRequest
    cancel_after: int | None
    replay_after: int | None


@st.composite
def engine_configs(draw: st.DrawFn) -> EngineConfig:
    max_batched = draw(st.sampled_from([8, 33, 64, 200]))
    config = make_config(
        sliding_window=draw(st.sampled_from([1, 20, 32, 33, 64, 150])),
        max_num_batched_tokens=max_batched,
        max_prefill_chunk=draw(st.integers(1, max_batched)),
        max_num_seqs=draw(st.integers(1, 8)),
        max_model_len=320,
        max_waiting=draw(st.sampled_from([2, 64])),
        prefix_cache=draw(st.booleans()),
        num_global_blocks=draw(st.integers(10, 40)),
    )
    # From just enough for one sequence to plenty.
    least = config.max_sliding_blocks_per_seq
    return replace(config, num_sliding_blocks=draw(st.integers(least, least + 20)))


@st.composite
def arrivals(draw: st.DrawFn, number: int) -> Arrival:
    text = draw(st.sampled_from(TEXTS))
    max_tokens = draw(st.integers(0, 60))
    params = SamplingParams(
        max_tokens=max_tokens,
        seed=draw(st.integers(0, 3)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        stop_token_ids=frozenset(draw(st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=2))),
        min_tokens=draw(st.integers(0, min(5, max_tokens))),
        num_logprobs=draw(st.sampled_from([None, 1])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
    )
    request = GenerationRequest(
        request_id=f"r{number}",
        choice=draw(st.integers(0, 1)),
        prompt_ids=text[: draw(st.integers(1, 250))],
        params=params,
        priority=draw(st.sampled_from([0, 0, 0, -1, 1])),
    )
    maybe_later = st.one_of(st.none(), st.integers(0, 25))
    return Arrival(draw(st.integers(0, 20)), request, draw(maybe_later), draw(maybe_later))


class Load:
    """Plays arrivals against an engine and keeps what came out."""

    def __init__(self, config: EngineConfig, plan: list[Arrival], failing: set[int]) -> None:
        self.runner = FakeRunner(config)
        self.engine = Engine(self.runner, config)
        self.plan, self.failing = plan, failing
        self.events: list[TokenEvent] = []
        self.refused: set[tuple[str, int]] = set()

    def play(self) -> None:
        last = max(arrival.step for arrival in self.plan) + 26
        for step in range(5000):
            if step > last and not self.engine.has_work:
                return
            for arrival in self.plan:
                self._act(arrival, step)
            if step in self.failing:
                self.runner.errors = [ShardFailedError(0, "told to")]
            self.events += self.engine.step(float(step))
            self.runner.errors = []
            self.engine.check()
        raise AssertionError("the engine makes no progress")

    def _act(self, arrival: Arrival, step: int) -> None:
        request, age = arrival.request, step - arrival.step
        if age == 0:
            self._submit(request)
        if age == arrival.replay_after and not finishes(self.events, request):
            emitted = tuple(sample.token_id for _, sample in outputs(self.events, request))
            self._submit(replace(request, attempt=1, emitted_ids=emitted))
        if age == arrival.cancel_after:
            self.engine.cancel(request.key)

    def _submit(self, request: GenerationRequest) -> None:
        if request.key in self.refused:
            return
        try:
            self.engine.submit(request)
        except OverloadedError:
            self.refused.add(request.key)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), config=engine_configs(), failing=st.sets(st.integers(0, 60), max_size=2))
def test_outputs_are_those_of_an_undisturbed_run_under_any_load(
    data: st.DataObject, config: EngineConfig, failing: set[int]
) -> None:
    number = data.draw(st.integers(1, 8))
    plan = [data.draw(arrivals(idx)) for idx in range(number)]
    load = Load(config, plan, failing)
    load.play()
    for request in (arrival.request for arrival in plan):
        expected = undisturbed(request, config.context_limit)
        given_out = outputs(load.events, request)
        ends = finishes(load.events, request)
        if request.key in load.refused:
            assert given_out == expected[: len(given_out)]
            assert ends == []
        elif ends in ([FinishReason.STOP], [FinishReason.LENGTH]):
            assert given_out == expected
        else:
            assert ends in ([FinishReason.CANCELLED], [FinishReason.ERROR])
            assert given_out == expected[: len(given_out)]
    stats = load.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (0, 0, 0)
    assert stats.kv_usage == 0.0
    assert max(load.runner.rows_per_step, default=0) <= config.max_num_batched_tokens
