"""Fewer, larger chunks of a stream: `stream_interval` tokens in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trinity_serve.api.choice import Delta


class StreamPace:
    """Holds deltas back until a choice has enough tokens for a chunk, or ends.

    A choice's first token is not held back: how soon it comes is what a reader notices.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._held: dict[int, list[Delta]] = {}
        self._begun: set[int] = set()

    def push(self, deltas: Sequence[Delta]) -> Iterator[tuple[Delta, Sequence[Delta]]]:
        """Yield what is due: a delta with the text of several, and these."""
        for delta in deltas:
            held = self._held.setdefault(delta.index, [])
            held.append(delta)
            is_first = delta.index not in self._begun
            if is_first or len(held) >= self._interval or delta.finish is not None:
                self._begun.add(delta.index)
                del self._held[delta.index]
                yield _merged(held), held


def _merged(deltas: list[Delta]) -> Delta:
    first, last = deltas[0], deltas[-1]
    return replace(
        last,
        text="".join([delta.text for delta in deltas]),
        text_offset=first.text_offset,
        prompt_logprobs=first.prompt_logprobs,
    )
