from __future__ import annotations

import asyncio

import pytest

from cluster.deadline import Deadline
from cluster.errors import (
    DeadlineExceededError,
    IncompleteGenerationError,
    OverloadedError,
    ShardFailedError,
    SlowReaderError,
)
from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.choice import Choice, Delta
from trinity_serve.api.generation import Generation
from trinity_serve.api.sampling import TextOptions
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.request import FinishReason, GenerationRequest, SamplingParams


def _choices(count: int, *, stop: str = "", max_tokens: int = 5) -> list[Choice]:
    params = SamplingParams(max_tokens=max_tokens, seed=1)
    options = TextOptions((stop,) if stop else ())
    return [
        Choice(index, GenerationRequest("r", index, (60, 61, 62), params), options)
        for index in range(count)
    ]


def _generation(
    engine: ScriptedEngine,
    tokenizer: TextTokenizer,
    choices: list[Choice],
    budget_s: float = 30.0,
) -> Generation:
    return Generation(engine, tokenizer, choices, Deadline.after(budget_s))


async def _all(generation: Generation) -> list[Delta]:
    return [delta async for deltas in generation for delta in deltas]


async def test_every_choice_comes_whole_and_ends_once(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    async with _generation(engine, tokenizer, _choices(3)) as generation:
        deltas = await _all(generation)
    for index in range(3):
        own = [delta for delta in deltas if delta.index == index]
        assert [delta.token_id for delta in own] == [60, 61, 62, 60, 61]
        assert [delta.finish for delta in own] == [None] * 4 + [FinishReason.LENGTH]
    assert generation.completion_tokens == 15
    assert not engine.open


async def test_a_stop_string_closes_the_engines_choice_and_nothing_past_it_counts(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.batch_size = 100
    stop = tokenizer.token_text(61)
    async with _generation(engine, tokenizer, _choices(1, stop=stop, max_tokens=50)) as generation:
        deltas = await _all(generation)
        assert not engine.open
    assert len(deltas) == generation.completion_tokens == 2


async def test_leaving_early_closes_every_choice(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.stall_after = 2
    async with _generation(engine, tokenizer, _choices(3)) as generation:
        await anext(generation)
        assert len(engine.open) == 3
    assert not engine.open


async def test_being_cancelled_closes_every_choice(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.stall_after = 0
    started = asyncio.Event()

    async def run() -> None:
        async with _generation(engine, tokenizer, _choices(2)) as generation:
            started.set()
            await anext(generation)

    task = asyncio.create_task(run())
    await started.wait()
    async with asyncio.timeout(5.0):
        while len(engine.open) < 2:
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engine.open


async def test_a_refusal_is_raised_by_the_first_step(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.refusal = OverloadedError("waiting queue", 4, 2.0)
    async with _generation(engine, tokenizer, _choices(2)) as generation:
        with pytest.raises(OverloadedError):
            await anext(generation)


async def test_one_choices_failure_ends_all(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.failure, engine.fail_after = ShardFailedError(2, "broken"), 3
    async with _generation(engine, tokenizer, _choices(2)) as generation:
        with pytest.raises(ShardFailedError):
            await _all(generation)
    assert not engine.open


async def test_the_deadline_ends_a_choice_that_does_not(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.stall_after = 1
    with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
        async with _generation(engine, tokenizer, _choices(1), budget_s=0.05) as generation:
            await _all(generation)
    assert not engine.open


async def test_events_that_stop_without_an_end_are_an_error(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    engine.script = lambda request: ()
    async with _generation(engine, tokenizer, _choices(1)) as generation:
        with pytest.raises(IncompleteGenerationError):
            await _all(generation)


async def test_what_nobody_reads_is_bounded_and_its_engine_choice_ended(
    engine: ScriptedEngine, tokenizer: TextTokenizer
) -> None:
    deadline = Deadline.after(30.0)
    choices = _choices(1, max_tokens=400)
    async with Generation(engine, tokenizer, choices, deadline, max_unread=20) as generation:
        first = await anext(generation)
        while engine.open:
            deadline.check("the end of what nobody reads")
            await asyncio.sleep(0.001)
        rest = await anext(generation)
        with pytest.raises(SlowReaderError, match="20 tokens of it were waiting"):
            await anext(generation)
    assert 20 < len(first) + len(rest) < 400
    assert all(delta.finish is None for delta in rest)
