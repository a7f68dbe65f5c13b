"""One choice: engine events in, text for the client out. Pure; knows no HTTP and no clock."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import NotReadyError, TrinityError
from trinity_serve.api.detokenizer import IncrementalDetokenizer
from trinity_serve.api.routing import npy_of
from trinity_serve.api.sampling import TextOptions
from trinity_serve.api.stop_strings import StopMatcher
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    RoutedExperts,
    TokenEvent,
    TokenLogprobs,
)


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice to make: `index` is its place in the reply, over all prompts."""

    index: int
    request: GenerationRequest
    text: TextOptions


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event adds to a choice.

    `text` may be empty while characters or a possible stop string are held back, and may hold text
    of earlier tokens. `text_offset` is where the token's own text starts in the generated text.
    """

    index: int
    text: str
    token_id: int | None
    text_offset: int = 0
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Of prompt tokens 1, 2, …; on a choice's first delta, when asked for."""
    routed_experts: bytes = b""
    """A .npy file; on a choice's last delta, when asked for."""


class ChoiceDecoder:
    """Turns the events of one choice into deltas, up to its one end."""

    def __init__(self, choice: Choice, tokenizer: TextTokenizer) -> None:
        self._index = choice.index
        self._options = choice.text
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, skip_special_tokens=choice.text.skip_special_tokens
        )
        self._stops = StopMatcher(choice.text.stop_strings, include_stop=choice.text.include_stop)
        self._routing: list[RoutedExperts] = []
        self._num_chars = 0
        self.num_tokens = 0
        self.finished = False

    def push_all(self, events: list[TokenEvent]) -> list[Delta]:
        """Return the deltas of a batch; events after the end are dropped.

        Raises the error that an event carries.
        """
        deltas = []
        for event in events:
            if self.finished:
                break
            deltas.append(self._push(event))
        return deltas

    def _push(self, event: TokenEvent) -> Delta:
        if event.finish in (FinishReason.ERROR, FinishReason.CANCELLED):
            raise _error_of(event)
        if event.routed_experts is not None:
            self._routing.append(event.routed_experts)
        offset = self._num_chars
        text = "" if event.token_id is None else self._token(event.token_id, event.stop_token_id)
        finish = event.finish
        stop_reason: str | int | None = None
        if finish is not None and self._stops.matched is None:
            text += self._let_through(self._detokenizer.flush()) + self._stops.flush()
            if event.stop_token_id in self._options.own_stop_ids:
                stop_reason = event.stop_token_id
        if self._stops.matched is not None:
            finish, stop_reason = FinishReason.STOP, self._stops.matched
        self.finished = finish is not None
        return Delta(
            self._index,
            text,
            event.token_id,
            offset,
            event.logprobs,
            finish,
            stop_reason,
            event.prompt_logprobs,
            npy_of(self._routing) if finish is not None else b"",
        )

    def _token(self, token_id: int, stop_token_id: int | None) -> str:
        self.num_tokens += 1
        if token_id == stop_token_id and not self._options.include_stop:
            return ""
        return self._let_through(self._detokenizer.push(token_id))

    def _let_through(self, text: str) -> str:
        self._num_chars += len(text)
        if self.num_tokens <= self._options.min_tokens:
            return text
        return self._stops.push(text)


def _error_of(event: TokenEvent) -> Exception:
    if event.finish is FinishReason.CANCELLED:
        # Not by the client, who closes the iterator; so he is there and may try again.
        return NotReadyError("the server ended the request before it was done")
    if event.error is not None:
        return event.error
    return TrinityError(f"Choice {event.choice} of request {event.request_id} failed.")
