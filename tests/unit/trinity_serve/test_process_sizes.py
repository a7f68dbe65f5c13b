"""Ranks and shards of one host share its cores."""

from __future__ import annotations

import pytest

from trinity_serve.config import parse_serve_args
from trinity_serve.threads import rank_threads, shard_threads


@pytest.mark.parametrize(("num_shards", "cores", "wanted"), [(4, 2, 1), (4, 16, 4), (3, 8, 2)])
def test_shards_together_take_every_core_once(num_shards: int, cores: int, wanted: int) -> None:
    args = {"mode": "local", "model": {"path": "m"}, "experts": {"num_shards": num_shards}}
    config = parse_serve_args(args)
    assert shard_threads(config, cores) == wanted
    assert rank_threads(config, cores) == cores


def test_a_number_that_is_given_counts() -> None:
    config = parse_serve_args(
        {
            "mode": "local",
            "model": {"path": "m"},
            "experts": {"num_threads": 3},
            "attention": {"num_threads": 5},
        }
    )
    assert (rank_threads(config, 2), shard_threads(config, 2)) == (5, 3)


def test_inline_has_one_shard_unless_told_otherwise() -> None:
    model = {"path": "m"}
    assert parse_serve_args({"mode": "inline", "model": model}).experts.num_shards == 1
    assert parse_serve_args({"mode": "local", "model": model}).experts.num_shards == 4
    two = {"mode": "inline", "model": model, "experts": {"num_shards": 2}}
    assert parse_serve_args(two).experts.num_shards == 2
