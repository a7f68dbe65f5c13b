"""All choices of one client request, run at once and merged into one stream of deltas.

Each choice has its engine iterator in a task of its own, opened and closed there. Leaving the
context ends every choice that still runs, whatever the reason: end, error, deadline, a client gone.
A replay on another rank happens inside the `EngineClient`; nothing here sees attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from types import TracebackType

from cluster.deadline import Deadline
from cluster.errors import DeadlineExceededError, IncompleteGenerationError, SlowReaderError
from trinity_serve.api.choice import Choice, ChoiceDecoder, Delta
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.client import EngineClient
from trinity_serve.engine.request import TokenEvent

PushEvents = Callable[[list[TokenEvent]], list[Delta]]

_CLOSE_TIMEOUT_S = 5.0
"""An engine client closes in milliseconds; this bounds one that does not."""
MAX_UNREAD = 4096
"""Deltas of each choice that may wait for a client to read, beyond what its socket takes."""


class Generation:
    """An async context and iterator of delta batches; ends after each choice's last delta.

    Iterating raises the first error of any choice, and `DeadlineExceededError` past the deadline.
    A choice that finds `max_unread` deltas for each waiting ends with `SlowReaderError` and frees
    what it held: memory stays bounded however long the generation and whatever the client does.
    """

    def __init__(
        self,
        client: EngineClient,
        tokenizer: TextTokenizer,
        choices: Sequence[Choice],
        deadline: Deadline,
        max_unread: int = MAX_UNREAD,
        timed: Callable[[PushEvents], PushEvents] | None = None,
    ) -> None:
        """`timed` measures what turns events into text, for a trace."""
        self._client = client
        self._timed = timed
        self._max_unread = max_unread * len(choices)
        self._tokenizer = tokenizer
        self._choices = choices
        self._deadline = deadline
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: list[Delta] = []
        self._error: BaseException | None = None
        self._num_open = len(choices)
        self._changed = asyncio.Event()
        self.completion_tokens = 0
        self._cached_tokens: dict[str, int] = {}

    async def __aenter__(self) -> Generation:
        """Submit every choice."""
        self._tasks = [asyncio.create_task(self._run(choice)) for choice in self._choices]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what still runs and wait until its iterators are closed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that a prefix cache had, each prompt counted once."""
        return sum(self._cached_tokens.values())

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Delta]:
        """Return everything that has come since the last call; wait when that is nothing."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._num_open:
                raise StopAsyncIteration
            await self._wait()
        deltas, self._ready = self._ready, []
        return deltas

    async def _wait(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                await self._changed.wait()
        except TimeoutError as error:
            raise DeadlineExceededError("The request", self._deadline.budget_s) from error

    async def _run(self, choice: Choice) -> None:
        try:
            await self._decode(choice)
        except Exception as error:  # handed to the one who iterates, who raises it
            self._error = self._error or error
        finally:
            self._num_open -= 1
            self._changed.set()

    async def _decode(self, choice: Choice) -> None:
        decoder = ChoiceDecoder(choice, self._tokenizer)
        push = decoder.push_all if self._timed is None else self._timed(decoder.push_all)
        async with aclosing(self._client.generate(choice.request)) as batches:
            async for events in batches:
                self._note_cached(choice, events)
                deltas = push(events)
                self.completion_tokens += sum(delta.token_id is not None for delta in deltas)
                self._ready += deltas
                self._changed.set()
                if decoder.finished:
                    return
                if len(self._ready) > self._max_unread:
                    raise SlowReaderError(self._max_unread)
        raise IncompleteGenerationError(choice.request.request_id, choice.request.choice)

    def _note_cached(self, choice: Choice, events: list[TokenEvent]) -> None:
        request = choice.request
        if events and request.choice == 0:
            # After a replay the context holds emitted tokens too, which are not of the prompt.
            cached = min(events[0].num_cached_tokens, len(request.prompt_ids))
            self._cached_tokens.setdefault(request.request_id, cached)
