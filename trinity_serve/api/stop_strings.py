"""Stop strings found in text that arrives in pieces, whatever the pieces are.

Source: Knuth, Morris, Pratt, "Fast Pattern Matching in Strings" (1977): one automaton per stop
string, so each character costs one step per string and nothing is searched twice.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets text through, but for what may still become a stop string.

    The match is the one that ends first; of several that end there, the longest. So the result
    does not depend on how the text was cut. With `include_stop` the stop string itself is let
    through too.
    """

    def __init__(self, stop_strings: Sequence[str], *, include_stop: bool = False) -> None:
        self._automata = [_Automaton(stop) for stop in stop_strings]
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return what can be sent now. After a match `matched` is set and nothing more comes."""
        if self.matched is not None:
            return ""
        if not self._automata:
            return text
        text = self._held + text
        for position in range(len(self._held), len(text)):
            stop = self._step(text[position])
            if stop is not None:
                self.matched, self._held = stop, ""
                end = position + 1
                return text[: end if self._include_stop else end - len(stop)]
        held_chars = max(automaton.length for automaton in self._automata)
        cut = len(text) - held_chars
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back: the text has ended, so it can become no stop string."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        longest: str | None = None
        for automaton in self._automata:
            if automaton.step(char) and (longest is None or len(automaton.stop) > len(longest)):
                longest = automaton.stop
        return longest


class _Automaton:
    """How long a prefix of one stop string the text seen so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._fallback = _border_lengths(stop)

    def step(self, char: str) -> bool:
        """Take one character; return whether the stop string ends with it."""
        stop, length = self.stop, self.length
        while length and stop[length] != char:
            length = self._fallback[length - 1]
        if stop[length] == char:
            length += 1
        self.length = length
        return length == len(stop)


def _border_lengths(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    lengths = [0] * len(stop)
    length = 0
    for position in range(1, len(stop)):
        while length and stop[position] != stop[length]:
            length = lengths[length - 1]
        if stop[position] == stop[length]:
            length += 1
        lengths[position] = length
    return lengths
