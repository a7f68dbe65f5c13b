"""One attempt of a choice at a rank: the call, who watches it, and what came of it so far."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import TrinityError
from trinity_serve.api.replay import ChoiceReplay
from trinity_serve.engine.request import GenerationRequest, TokenEvent


class CallWatcher(Protocol):
    """Told by the router, on any thread, what becomes of a call."""

    @property
    def refused_by(self) -> frozenset[str]:
        """Ranks that had no room for the choice; others come first."""

    def routed(self, rank: str) -> None:
        """The call goes to `rank`."""

    def leaving(self) -> None:
        """The rank of the call is going away."""


class RankCall(Protocol):
    """A call that runs; it returns after the last event was sent, or raises what ended it."""

    def result(self) -> Awaitable[None]:
        """Wait for the end. Raises `TrinityError`; `LinkLostError` when the rank is gone."""

    def cancel(self) -> None:
        """Let the rank drop the choice."""


class Ranks(Protocol):
    """Calls a rank of the router's choice."""

    def call(self, request: GenerationRequest, watcher: CallWatcher) -> RankCall:
        """Start the call; never blocks."""


class Attempt:
    """One attempt of one choice: its inbox, and what is known of its call."""

    def __init__(self, request: GenerationRequest, choice: ChoiceReplay) -> None:
        self.key = (request.request_id, request.choice, request.attempt)
        self.choice = choice
        self.rank = ""
        self.inbox: deque[TokenEvent] = deque()
        self.wake = asyncio.Event()
        self.resumed = asyncio.Event()
        self.error: TrinityError | None = None
        self.last_problem = "its event stream was lost"
        self.returned = False


@dataclass(slots=True)
class Watcher:
    """Carries the router's news from its thread to the client's loop."""

    loop: asyncio.AbstractEventLoop
    attempt: Attempt
    refused_by: frozenset[str]
    on_routed: Callable[[Attempt, str], None]
    on_leaving: Callable[[Attempt], None]

    def routed(self, rank: str) -> None:
        """See `CallWatcher`."""
        self.loop.call_soon_threadsafe(self.on_routed, self.attempt, rank)

    def leaving(self) -> None:
        """See `CallWatcher`."""
        self.loop.call_soon_threadsafe(self.on_leaving, self.attempt)
