"""The one unary call between ingress and rank, as both see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from trinity_serve.engine.request import GenerationRequest
from trinity_serve.prefix_index import prompt_digests
from trinity_serve.rank_attempt import CallWatcher


@dataclass(frozen=True)
class GenerateCall:
    """A choice to generate and where its events go. `watcher` stays in the ingress's process."""

    request: GenerationRequest
    reply_to: str
    """The ingress's `StreamAddress` as text."""
    watcher: CallWatcher | None = field(default=None, compare=False)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Blocks of the context; the router asks for them each time it tries to place the call."""
        return prompt_digests(self.request)

    def __reduce__(self) -> tuple[type[GenerateCall], tuple[GenerationRequest, str]]:
        return (GenerateCall, (self.request, self.reply_to))
