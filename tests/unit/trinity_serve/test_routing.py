"""Load decides between ranks; a session stays where it was as long as that is no worse."""

from __future__ import annotations

from trinity_serve.routing import STICKY_MARGIN, RankLoad, order_ranks


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
