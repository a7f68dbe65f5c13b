"""A cached prefix draws, a session stays, and load bounds both."""

from __future__ import annotations

from trinity_serve.routing import STICKY_MARGIN, TOKENS_PER_CALL, RankLoad, order_ranks


def loads(**open_calls: int) -> list[RankLoad]:
    return [RankLoad(rank, number) for rank, number in open_calls.items()]


def test_the_least_loaded_rank_comes_first() -> None:
    assert order_ranks(loads(a=3, b=1, c=2)) == ["b", "c", "a"]


def test_without_ranks_there_is_no_order() -> None:
    assert order_ranks([], "session") == []


def test_a_session_keeps_its_rank_over_small_differences_and_leaves_it_over_large_ones() -> None:
    favourite = order_ranks(loads(a=0, b=0, c=0), "session")[0]
    others = dict.fromkeys({"a", "b", "c"} - {favourite}, 0)
    assert order_ranks(loads(**{favourite: STICKY_MARGIN}, **others), "session")[0] == favourite
    assert order_ranks(loads(**{favourite: STICKY_MARGIN + 1}, **others), "session")[0] != favourite


def test_a_rank_that_leaves_moves_only_its_own_sessions() -> None:
    before = {str(i): order_ranks(loads(a=0, b=0, c=0), str(i))[0] for i in range(100)}
    after = {str(i): order_ranks(loads(a=0, b=0), str(i))[0] for i in range(100)}
    assert all(after[session] == rank for session, rank in before.items() if rank != "c")
    assert set(before.values()) == {"a", "b", "c"}


def test_a_cached_prefix_draws_unless_its_rank_is_loaded_beyond_what_it_spares() -> None:
    def first(cached_tokens: int, more_calls: int) -> str:
        warm = RankLoad("warm", 3 + more_calls, cached_tokens)
        return order_ranks([RankLoad("cold", 3), warm])[0]

    assert first(cached_tokens=32, more_calls=0) == "warm"
    assert first(cached_tokens=TOKENS_PER_CALL - 1, more_calls=1) == "cold"
    assert first(cached_tokens=2 * TOKENS_PER_CALL, more_calls=2) == "warm"
    assert first(cached_tokens=2 * TOKENS_PER_CALL, more_calls=3) == "cold"
    assert first(cached_tokens=10**6, more_calls=STICKY_MARGIN) == "warm"
    assert first(cached_tokens=10**6, more_calls=STICKY_MARGIN + 1) == "cold"


def test_load_and_length_of_the_prefix_break_each_others_ties() -> None:
    same_load = [RankLoad("a", 2, 64), RankLoad("b", 2, 96), RankLoad("c", 2)]
    assert order_ranks(same_load) == ["b", "a", "c"]
    same_prefix = [RankLoad("a", 2, 4096), RankLoad("b", 1, 4096), RankLoad("c", 0)]
    assert order_ranks(same_prefix) == ["b", "a", "c"]


def test_a_session_goes_before_a_prefix() -> None:
    home = order_ranks(loads(a=0, b=0), "session")[0]
    (other,) = {"a", "b"} - {home}
    assert order_ranks([RankLoad(home, 1), RankLoad(other, 1, 4096)], "session")[0] == home


def test_no_prefix_draws_all_requests_to_one_rank() -> None:
    """A prompt that everybody sends ends up on every rank once the first one is busy."""
    open_calls = dict.fromkeys("abc", 0)
    has_prompt: set[str] = set()
    for _ in range(60):
        ranks = [RankLoad(r, n, 8192 if r in has_prompt else 0) for r, n in open_calls.items()]
        chosen = order_ranks(ranks)[0]
        open_calls[chosen] += 1
        has_prompt.add(chosen)
    assert max(open_calls.values()) - min(open_calls.values()) <= STICKY_MARGIN + 1


def test_a_rank_that_had_no_room_is_not_asked_again_while_there_are_others() -> None:
    assert order_ranks(loads(a=0, b=5, c=6), refused_by={"a"}) == ["b", "c"]
    assert order_ranks(loads(a=0, b=5), refused_by={"a", "b"}) == ["a", "b"]
