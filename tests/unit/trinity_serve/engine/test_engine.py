from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cluster.errors import (
    ContextTooLongError,
    InvalidRequestError,
    OverloadedError,
    PoisonedRequestError,
    ShardFailedError,
)
from tests.unit.trinity_serve.engine.fakes import (
    FakeRunner,
    finishes,
    make_config,
    make_request,
    outputs,
    undisturbed,
)
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import FinishReason, GenerationRequest, TokenEvent


def make_engine(config: EngineConfig | None = None) -> tuple[Engine, FakeRunner]:
    config = config or make_config()
    runner = FakeRunner(config)
    return Engine(runner, config), runner


def run(engine: Engine, max_steps: int = 2000) -> list[TokenEvent]:
    events = []
    for step in range(max_steps):
        if not engine.has_work:
            break
        events += engine.step(float(step))
        engine.check()
    assert not engine.has_work, "the engine makes no progress"
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (0, 0, 0)
    assert stats.kv_usage == 0.0
    return events


def assert_undisturbed(
    engine: Engine, events: list[TokenEvent], *requests: GenerationRequest
) -> None:
    for request in requests:
        assert outputs(events, request) == undisturbed(request, engine.config.context_limit)
        assert len(finishes(events, request)) == 1


def test_a_lone_request_gives_the_tokens_of_the_model() -> None:
    engine, _ = make_engine()
    request = make_request(prompt=70, max_tokens=40)
    engine.submit(request)
    events = run(engine)
    assert_undisturbed(engine, events, request)
    assert finishes(events, request) == [FinishReason.LENGTH]


def test_many_requests_in_one_batch_do_not_change_each_other() -> None:
    engine, runner = make_engine()
    requests = [make_request(f"r{i}", 5 + 13 * i, 20, seed=i) for i in range(8)]
    for request in requests:
        engine.submit(request)
    assert_undisturbed(engine, run(engine), *requests)
    assert max(runner.rows_per_step) <= engine.config.max_num_batched_tokens


def test_prefill_beside_decodes_is_bounded_and_unbounded_alone() -> None:
    engine, runner = make_engine()
    short, long = make_request("short", 3, 30), make_request("long", 400, 5)
    engine.submit(short)
    events = engine.step(0.0)
    engine.submit(long)
    events += run(engine)
    assert_undisturbed(engine, events, short, long)
    assert runner.widest_prefill_beside_decode == engine.config.max_prefill_chunk
    engine, runner = make_engine()
    engine.submit(long)
    run(engine)
    assert max(runner.rows_per_step) == engine.config.max_num_batched_tokens


def test_how_long_steps_take_changes_chunks_and_no_output() -> None:
    """The same requests on a fast and on an erratic machine."""
    config = make_config(max_num_batched_tokens=128, max_prefill_chunk=128, max_mixed_step_s=0.1)
    requests = [make_request(f"r{i}", 30 + 60 * i, 40, seed=i) for i in range(6)]
    rows = []
    for seconds in ([0.001], [0.03, 0.2, 5.0, 0.001]):
        engine, runner = make_engine(config)
        for request in requests:
            engine.submit(request)
        events, now_s = [], 0.0
        for took_s in itertools.cycle(seconds):
            if not engine.has_work:
                break
            events += engine.step(now_s)
            now_s += took_s
        assert_undisturbed(engine, events, *requests)
        rows.append(runner.rows_per_step)
    assert rows[0] != rows[1]


def test_preemption_changes_no_output() -> None:
    config = make_config(num_global_blocks=16, prefix_cache=False)
    engine, _ = make_engine(config)
    requests = [make_request(f"r{i}", 30, 120, seed=i) for i in range(8)]
    for request in requests:
        engine.submit(request)
    events = run(engine)
    assert_undisturbed(engine, events, *requests)
    assert engine.stats().num_preemptions > 0


def test_the_youngest_of_the_lowest_priority_is_preempted() -> None:
    config = make_config(num_global_blocks=8, max_model_len=256, prefix_cache=False)
    engine, _ = make_engine(config)
    first, urgent, last = (make_request(name, 30, 60) for name in ("first", "urgent", "last"))
    urgent = replace(urgent, priority=-1)
    for request in (first, last, urgent):
        engine.submit(request)
    events = run(engine)
    assert_undisturbed(engine, events, first, urgent, last)
    assert engine.stats().num_preemptions > 0
    ends = [event.request_id for event in events if event.finish]
    assert ends == ["urgent", "first", "last"]


def test_a_prefix_hit_changes_no_output_and_is_counted() -> None:
    engine, runner = make_engine()
    prompt = make_request(prompt=100).prompt_ids
    cold, warm = make_request("cold", prompt), make_request("warm", (*prompt, 1, 2), seed=5)
    engine.submit(cold)
    cold_events = run(engine)
    num_rows = sum(runner.rows_per_step)
    engine.submit(warm)
    warm_events = run(engine)
    assert_undisturbed(engine, cold_events, cold)
    assert_undisturbed(engine, warm_events, warm)
    assert {event.num_cached_tokens for event in cold_events} == {0}
    assert {event.num_cached_tokens for event in warm_events} == {96}
    assert sum(runner.rows_per_step) - num_rows == 102 - 96 + 7
    assert engine.stats().extra["prefix_cache_hits"] == 96
    assert engine.stats().extra["prefix_cache_queries"] == 100 + 102


def test_a_prompt_of_whole_blocks_computes_its_last_block_again() -> None:
    engine, _ = make_engine()
    request = make_request("first", 64)
    engine.submit(request)
    run(engine)
    again = replace(request, request_id="again")
    engine.submit(again)
    events = run(engine)
    assert_undisturbed(engine, events, again)
    assert {event.num_cached_tokens for event in events} == {32}


def test_other_salts_share_no_prefix() -> None:
    engine, _ = make_engine()
    request = make_request("mine", 100)
    engine.submit(request)
    run(engine)
    engine.submit(replace(request, request_id="yours", cache_salt=b"other"))
    assert {event.num_cached_tokens for event in run(engine)} == {0}


def test_an_answer_is_a_cached_prefix_of_the_next_turn() -> None:
    engine, _ = make_engine()
    first = make_request("first", 50, 60)
    engine.submit(first)
    events = run(engine)
    answer = tuple(event.token_id for event in events if event.token_id is not None)
    second = make_request("second", (*first.prompt_ids, *answer, 3, 4, 5))
    engine.submit(second)
    events = run(engine)
    assert_undisturbed(engine, events, second)
    assert events[0].num_cached_tokens == 96


def test_a_replay_goes_on_where_the_older_attempt_stopped() -> None:
    engine, _ = make_engine()
    request = make_request(prompt=40, max_tokens=50, repetition_penalty=1.3, frequency_penalty=0.2)
    whole = undisturbed(request, engine.config.context_limit)
    emitted = tuple(sample.token_id for _, sample in whole[:20])
    engine.submit(replace(request, attempt=1, emitted_ids=emitted))
    events = run(engine)
    assert outputs(events, request) == whole[20:]
    assert {event.attempt for event in events} == {1}


def test_a_replay_of_a_complete_choice_gives_only_its_end() -> None:
    engine, runner = make_engine()
    request = make_request(max_tokens=3)
    emitted = tuple(s.token_id for _, s in undisturbed(request, engine.config.context_limit))
    engine.submit(replace(request, attempt=1, emitted_ids=emitted))
    (event,) = run(engine)
    assert (event.token_id, event.index, event.finish) == (None, 3, FinishReason.LENGTH)
    assert runner.rows_per_step == []


def test_a_replay_that_ended_on_a_stop_id_gives_only_its_end() -> None:
    engine, _ = make_engine()
    request = make_request(max_tokens=9, stop_token_ids=frozenset({7}))
    engine.submit(replace(request, attempt=2, emitted_ids=(3, 7)))
    (event,) = run(engine)
    assert (event.finish, event.stop_token_id) == (FinishReason.STOP, 7)


def test_a_higher_attempt_replaces_the_older_silently() -> None:
    engine, _ = make_engine()
    request = make_request(max_tokens=20)
    engine.submit(request)
    first = engine.step(0.0)
    emitted = tuple(e.token_id for e in first if e.token_id is not None)
    engine.submit(replace(request, attempt=1, emitted_ids=emitted))
    engine.submit(request)  # late, and of an attempt that is over
    events = run(engine)
    assert {event.attempt for event in events} == {1}
    assert_undisturbed(engine, first + events, request)


def test_an_attempt_replaced_before_its_end_was_told_is_silent_too() -> None:
    engine, _ = make_engine()
    request = make_request(max_tokens=0)
    engine.submit(request)
    engine.submit(request)
    engine.submit(replace(request, attempt=1))
    (event,) = run(engine)
    assert (event.attempt, event.finish) == (1, FinishReason.LENGTH)


def test_a_late_cancellation_spares_the_replacement() -> None:
    engine, _ = make_engine()
    request = make_request()
    engine.submit(replace(request, attempt=1))
    assert not engine.cancel(request.key, attempt=0)
    assert finishes(run(engine), request) == [FinishReason.LENGTH]


def test_stop_ids_end_a_choice_and_min_tokens_holds_them_back() -> None:
    engine, _ = make_engine()
    free = make_request("free", max_tokens=200, num_logprobs=None)
    produced = [s.token_id for _, s in undisturbed(free, 512)]
    stop = frozenset(produced[5:9])
    stopped = make_request("free", max_tokens=200, stop_token_ids=stop)
    engine.submit(stopped)
    events = run(engine)
    assert events[-1].finish is FinishReason.STOP
    assert events[-1].stop_token_id == events[-1].token_id
    assert events[-1].index <= 5
    held_back = make_request("held", max_tokens=200, stop_token_ids=stop, min_tokens=30)
    engine.submit(held_back)
    events = run(engine)
    assert events[-1].index >= 30
    assert not stop & {event.token_id for event in events[:30]}
    assert_undisturbed(engine, events, held_back)


def test_a_choice_ends_at_the_context_limit() -> None:
    engine, _ = make_engine(make_config(num_global_blocks=3, max_model_len=512))
    request = make_request(prompt=90, max_tokens=400)
    engine.submit(request)
    events = run(engine)
    assert len(events) == 96 - 90
    assert events[-1].finish is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (make_request(prompt=()), InvalidRequestError, "no tokens"),
        (make_request(prompt=(1, 40)), InvalidRequestError, "40; allowed are 0 to 39"),
        (make_request(prompt=512), ContextTooLongError, "512 tokens"),
    ],
)
def test_a_request_that_cannot_run_is_refused(
    request_: GenerationRequest, error: type[Exception], words: str
) -> None:
    engine, _ = make_engine()
    with pytest.raises(error, match=words):
        engine.submit(request_)
    assert not engine.has_work


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    engine, _ = make_engine(make_config(max_num_seqs=2, max_waiting=1))
    accepted = [make_request(f"r{i}") for i in range(3)]
    for request in accepted:
        engine.submit(request)
    refused = make_request("refused")
    with pytest.raises(OverloadedError):
        engine.submit(refused)
    events = run(engine)
    assert_undisturbed(engine, events, *accepted)
    assert not finishes(events, refused)


def test_a_failed_forward_ends_the_requests_of_that_step_only() -> None:
    engine, runner = make_engine(make_config(max_num_seqs=2, max_waiting=4))
    requests = [make_request(f"r{i}", 40) for i in range(4)]
    for request in requests:
        engine.submit(request)
    events = engine.step(0.0)
    runner.errors.append(ShardFailedError(1, "crashed"))
    events += run(engine)
    assert [finishes(events, r) for r in requests[:2]] == [[FinishReason.ERROR]] * 2
    assert all(isinstance(e.error, ShardFailedError) for e in events if e.finish == "error")
    assert_undisturbed(engine, events, *requests[2:])


def test_a_request_that_alone_is_at_fault_ends_alone() -> None:
    engine, runner = make_engine(make_config(max_num_seqs=3))
    requests = [make_request(f"r{i}", 40) for i in range(3)]
    for request in requests:
        engine.submit(request)
    events = engine.step(0.0)
    runner.errors.append(PoisonedRequestError((1,), 0, "its rows alone crashed 2 shards"))
    events += run(engine)
    assert finishes(events, requests[1]) == [FinishReason.ERROR]
    assert all(isinstance(e.error, PoisonedRequestError) for e in events if e.finish == "error")
    assert_undisturbed(engine, events, requests[0], requests[2])


def test_cancelled_requests_free_everything_wherever_they_are() -> None:
    engine, _ = make_engine(make_config(max_num_seqs=2))
    requests = [make_request(f"r{i}", 100, 50) for i in range(4)]
    for request in requests:
        engine.submit(request)
    events = engine.step(0.0)
    assert all(engine.cancel(request.key) for request in requests[:3])
    assert not engine.cancel(requests[0].key)
    events += run(engine)
    assert [finishes(events, r) for r in requests[:3]] == [[FinishReason.CANCELLED]] * 3
    assert_undisturbed(engine, events, requests[3])


def test_a_reset_ends_all_and_the_engine_serves_on() -> None:
    engine, _ = make_engine()
    lost, later = make_request("lost", 100), make_request("later", 100)
    engine.submit(lost)
    engine.step(0.0)
    events = engine.reset(ShardFailedError(0, "gone"))
    assert finishes(events, lost) == [FinishReason.ERROR]
    engine.submit(later)
    assert_undisturbed(engine, run(engine), later)
    # A counter that fell would look like a restart to Prometheus.
    assert engine.stats().extra["prefix_cache_queries"] == 200.0
