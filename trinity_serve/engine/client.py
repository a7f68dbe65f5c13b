"""The seam between the REST face and whatever runs the engine: a thread here, or ranks on Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

from trinity_serve.engine.request import EngineStats, GenerationRequest, TokenEvent


class EventBatches(Protocol):
    """What `generate` returns; an async generator is one."""

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]:
        """Return itself."""
        ...

    def __anext__(self) -> Awaitable[list[TokenEvent]]:
        """Wait for the next events; there is at least one."""
        ...

    async def aclose(self) -> None:
        """Cancel the choice if it still runs; the engine's next step frees all it held."""
        ...


class EngineClient(Protocol):
    """What the API talks to. All methods are called on the API's event loop."""

    @property
    def fingerprint(self) -> str | None:
        """Return what decides the bits of outputs: checkpoint, dtype and kernels; None: not known.

        The `system_fingerprint` of answers.
        """
        ...

    def generate(self, request: GenerationRequest) -> EventBatches:
        """Submit one choice and iterate over its events, batched as they come.

        Raises `OverloadedError`, `NotReadyError` or `InvalidRequestError` (a context that is too
        long, an id that is open already) from the first `anext`, before any event.
        Closing the iterator early (`aclose`) cancels the choice and frees all it held. An event
        with `finish` ERROR carries the error; it ends the iteration without raising.
        """
        ...

    async def stats(self) -> EngineStats:
        """Return a recent snapshot, summed over ranks."""
        ...

    async def ready(self) -> None:
        """Return when requests can be served; raise `NotReadyError` with the reason when not."""
        ...
