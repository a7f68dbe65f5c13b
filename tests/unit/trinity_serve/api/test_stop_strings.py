from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from trinity_serve.api.stop_strings import StopMatcher

_TEXTS = st.text("ab", max_size=40)
_STOPS = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4)


def _whole(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: the stop that ends first, of those the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def _cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(_TEXTS, _STOPS, st.lists(st.integers(0, 100), max_size=12), st.booleans())
@example("aab", ["b", "aab"], [1, 2], False)
def test_any_cut_of_the_text_gives_the_result_of_the_whole(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    out = "".join(matcher.push(part) for part in _cut(text, cuts)) + matcher.flush()
    assert (out, matcher.matched) == _whole(text, stops, include)


@given(_TEXTS, _STOPS)
def test_only_what_may_still_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(char) for char in text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_without_stops_text_goes_straight_through() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc"
    assert matcher.flush() == ""


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one END two") == "one "
    assert matcher.push("three") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "END"


def test_the_stop_itself_is_let_through_when_asked() -> None:
    matcher = StopMatcher(["END"], include_stop=True)
    assert matcher.push("one E") + matcher.push("ND two") == "one END"
