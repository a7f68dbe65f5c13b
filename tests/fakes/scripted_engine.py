"""An engine client that plays a script: no model, no threads, every token known beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from trinity_serve.engine.request import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenLogprobs,
)

Script = Callable[[GenerationRequest], Sequence[int]]


def echo_prompt(request: GenerationRequest) -> Sequence[int]:
    """Say the prompt again and again."""
    times = -(-request.params.max_tokens // len(request.prompt_ids))
    return list(request.prompt_ids) * times


@dataclass
class ScriptedEngine:
    """Emits `script(request)` in batches, ended by stop ids and max_tokens as an engine would.

    `refusal` is raised before any event. After `fail_after` tokens the choice ends with `failure`;
    after `stall_after` tokens nothing comes any more.
    """

    script: Script = echo_prompt
    batch_size: int = 1
    refusal: Exception | None = None
    failure: Exception | None = None
    fail_after: int | None = None
    stall_after: int | None = None
    not_ready: Exception | None = None
    num_cached_tokens: int = 0
    fingerprint: str | None = None
    numbers: EngineStats = field(default_factory=EngineStats)
    requests: list[GenerationRequest] = field(default_factory=list)
    open: set[tuple[str, int]] = field(default_factory=set)
    num_emitted: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[TokenEvent], None]:
        """See `EngineClient.generate`."""
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.open.add(request.key)
        try:
            events = self._events(request)
            for start in range(0, len(events), self.batch_size):
                await asyncio.sleep(0)
                batch = events[start : start + self.batch_size]
                self.num_emitted += len(batch)
                yield batch
            if self.stall_after is not None:
                await asyncio.Event().wait()
        finally:
            self.open.discard(request.key)

    async def stats(self) -> EngineStats:
        """Return what the test has set."""
        return self.numbers

    async def ready(self) -> None:
        """Raise what the test has set."""
        if self.not_ready is not None:
            raise self.not_ready

    def _events(self, request: GenerationRequest) -> list[TokenEvent]:
        if request.params.only_scores:
            return [self._event(request, 0, None, FinishReason.LENGTH)]
        events: list[TokenEvent] = []
        tokens = list(self.script(request))[: request.params.max_tokens]
        for index, token in enumerate(tokens):
            if index == self.stall_after:
                return events
            if index == self.fail_after:
                failed = self._event(request, index, None, FinishReason.ERROR)
                return [*events, failed]
            stopped = token in request.params.stop_token_ids
            finish = FinishReason.STOP if stopped else None
            if finish is None and index + 1 == len(tokens):
                finish = FinishReason.LENGTH
            events.append(self._event(request, index, token, finish))
            if finish is not None:
                break
        return events

    def _event(
        self,
        request: GenerationRequest,
        index: int,
        token: int | None,
        finish: FinishReason | None,
    ) -> TokenEvent:
        logprobs = None
        num_logprobs = request.params.num_logprobs
        if token is not None and num_logprobs is not None:
            top = tuple((token + rank, -0.5 - rank) for rank in range(num_logprobs))
            logprobs = TokenLogprobs(-0.5, top)
        return TokenEvent(
            request.request_id,
            request.choice,
            request.attempt,
            index,
            token,
            logprobs,
            finish,
            stop_token_id=token if finish is FinishReason.STOP else None,
            error=self.failure if finish is FinishReason.ERROR else None,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=_scores(request) if index == 0 else None,
        )


def _scores(request: GenerationRequest) -> tuple[TokenLogprobs, ...] | None:
    """Say -1, -2, … of the prompt's tokens, each the second best."""
    count = request.params.num_prompt_logprobs
    if count is None:
        return None
    return tuple(
        TokenLogprobs(float(-place), ((token + 1, -0.5), (token, float(-place)))[:count], 2)
        for place, token in enumerate(request.prompt_ids[1:], start=1)
    )
