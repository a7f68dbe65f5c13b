"""Log-probabilities of prompts: the same however the prompt is cut, cached or preempted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.errors import ContextTooLongError, NonFiniteLogitsError
from tests.unit.trinity_serve.engine.fakes import (
    VOCAB_SIZE,
    FakeRunner,
    context_logits,
    make_config,
    make_request,
)
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenLogprobs,
)
from trinity_serve.engine.sampler import Sampler
from trinity_serve.model.batch import ForwardBatch


def scores_of(request: GenerationRequest) -> tuple[TokenLogprobs, ...]:
    """What a request's prompt must score, row by row, without an engine."""
    ids = np.array(request.prompt_ids, np.int64)
    rows = [torch.from_numpy(context_logits(ids[:end])) for end in range(1, len(ids))]
    if not rows:
        return ()
    count = request.params.num_prompt_logprobs or 0
    return tuple(Sampler().score(torch.stack(rows), ids[1:], count))


def run(engine: Engine) -> list[TokenEvent]:
    events = []
    for step in range(2000):
        if not engine.has_work:
            break
        events += engine.step(float(step))
        engine.check()
    assert not engine.has_work
    assert engine.stats().kv_usage == 0.0
    return events


def told(events: list[TokenEvent], name: str) -> list[tuple[TokenLogprobs, ...]]:
    return [
        event.prompt_logprobs
        for event in events
        if event.request_id == name and event.prompt_logprobs is not None
    ]


@pytest.mark.parametrize("sizes", [{}, {"max_scored_rows": 1}, {"max_prefill_chunk": 7}])
def test_each_prompt_is_scored_once_whatever_the_chunks(sizes: dict[str, int]) -> None:
    config = make_config(**sizes)
    engine = Engine(FakeRunner(config), config)
    requests = [
        make_request(f"r{i}", n, 3, num_prompt_logprobs=2) for i, n in enumerate((1, 2, 90))
    ]
    plain = make_request("plain", 50, 10)
    for request in [*requests, plain]:
        engine.submit(request)
    events = run(engine)
    for request in requests:
        assert told(events, request.request_id) == [scores_of(request)]
    assert told(events, "plain") == []


def test_a_step_scores_no_more_rows_than_allowed() -> None:
    config = make_config(max_scored_rows=20)
    runner = FakeRunner(config)
    engine = Engine(runner, config)
    for i in range(3):
        engine.submit(make_request(f"r{i}", 90, 1, num_prompt_logprobs=0))
    run(engine)
    assert max(runner.rows_per_step) <= 20 + len("r0")


def test_scoring_alone_makes_no_token_and_takes_a_full_context() -> None:
    config = make_config(max_model_len=64)
    engine = Engine(FakeRunner(config), config)
    request = make_request(prompt=64, max_tokens=0, num_prompt_logprobs=1)
    engine.submit(request)
    [event] = run(engine)
    assert (event.token_id, event.finish) == (None, FinishReason.LENGTH)
    assert event.prompt_logprobs == scores_of(request)
    with pytest.raises(ContextTooLongError):
        engine.submit(make_request(prompt=65, max_tokens=0, num_prompt_logprobs=1))


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    engine.submit(make_request(prompt=1, max_tokens=0, num_prompt_logprobs=1))
    assert [event.prompt_logprobs for event in run(engine)] == [()]


def test_a_cached_prefix_is_computed_again_to_be_scored() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    request = make_request(prompt=100, max_tokens=2, num_prompt_logprobs=0)
    engine.submit(replace(request, request_id="before", params=make_request().params))
    run(engine)
    engine.submit(request)
    events = run(engine)
    assert told(events, "r") == [scores_of(request)]
    assert {event.num_cached_tokens for event in events} == {0}


def test_scores_survive_preemption() -> None:
    config = make_config(num_global_blocks=8, max_scored_rows=9)
    engine = Engine(FakeRunner(config), config)
    requests = [make_request(f"r{i}", 70, 60, num_prompt_logprobs=1) for i in range(3)]
    for request in requests:
        engine.submit(request)
    events = run(engine)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert told(events, request.request_id) == [scores_of(request)]


def test_a_replay_after_the_first_token_does_not_score_again() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    request = make_request(prompt=40, max_tokens=4, num_prompt_logprobs=1)
    engine.submit(request)
    first = next(event for event in run(engine) if event.index == 0)
    assert first.token_id is not None
    engine.submit(replace(request, attempt=1, emitted_ids=(first.token_id,)))
    assert told(run(engine), "r") == []


class BrokenRows(FakeRunner):
    """Gives a row that is not finite to the first sequence of each batch."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        logits_RV = super().forward(batch)
        logits_RV[0] = torch.nan
        return logits_RV


def test_a_row_that_is_not_finite_fails_its_request_alone() -> None:
    config = make_config()
    engine = Engine(BrokenRows(config), config)
    engine.submit(make_request("bad", 30, 1, num_prompt_logprobs=0))
    engine.submit(make_request("good", 30, 1, num_prompt_logprobs=0))
    bad, good = run(engine)
    assert isinstance(bad.error, NonFiniteLogitsError)
    assert (good.request_id, good.finish) == ("good", FinishReason.LENGTH)


def test_a_score_names_rank_and_the_best() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [3, 5]] = torch.tensor([2.0, 1.0])
    [score] = Sampler().score(logits, np.array([7]), 2)
    assert score.rank == 3
    assert [token for token, _ in score.top] == [3, 5]
    expected = torch.log_softmax(logits[0].double(), 0)
    assert score.chosen == pytest.approx(float(expected[7]), abs=1e-6)
