"""What an ingress believes of a rank's cache: the engine's own digests, bounded and aged."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.trinity_serve.engine.fakes import FakeRunner, make_config, make_request
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import GenerationRequest
from trinity_serve.model.batch import KV_BLOCK_SIZE
from trinity_serve.prefix_index import MAX_BLOCKS_PER_PROMPT, PrefixIndex, prompt_digests

SYSTEM = tuple(n % 40 for n in range(3 * KV_BLOCK_SIZE))


def found_by(engine: Engine, request: GenerationRequest) -> int:
    """Run a request to its end; return how many tokens the prefix cache had."""
    engine.submit(request)
    events = [event for step in range(50) if engine.has_work for event in engine.step(float(step))]
    return events[-1].num_cached_tokens


def test_the_index_foretells_what_an_engine_finds() -> None:
    """A salt, a replay's emitted tokens, a prompt of whole blocks: told as `longest_hit` does."""
    config = make_config()
    engine, index = Engine(FakeRunner(config), config), PrefixIndex()
    first = make_request("first", SYSTEM + (7,) * 40)
    requests = [
        first,
        make_request("second", (*SYSTEM, 8, 9)),
        make_request("whole blocks", SYSTEM),
        make_request("other start", (1, *SYSTEM)),
        replace(make_request("salted", (*SYSTEM, 8, 9)), cache_salt=b"tenant"),
        replace(make_request("replayed", SYSTEM, 60), emitted_ids=(7,) * 40),
    ]
    found = []
    for now_s, request in enumerate(requests):
        digests = prompt_digests(request)
        expected = index.cached_tokens("rank", digests, now_s)
        found.append(found_by(engine, request))
        assert found[-1] == expected, request.request_id
        index.sent("rank", digests, now_s)
    assert found == [0, 96, 64, 0, 0, 128]


def test_ranks_are_told_apart_and_those_that_left_are_forgotten() -> None:
    index, digests = PrefixIndex(), prompt_digests(make_request(prompt=(*SYSTEM, 1)))
    index.sent("a", digests, 0.0)
    assert index.cached_tokens("a", digests, 0.0) == len(SYSTEM)
    assert index.cached_tokens("b", digests, 0.0) == 0
    index.keep_only({"b"})
    assert index.cached_tokens("a", digests, 0.0) == 0


def test_what_is_long_unused_counts_no_more_and_use_keeps_it() -> None:
    index = PrefixIndex(max_age_s=10.0)
    digests = prompt_digests(make_request(prompt=(*SYSTEM, 1)))
    index.sent("a", digests, 0.0)
    index.sent("a", digests[:1], 8.0)
    assert index.cached_tokens("a", digests, 10.0) == len(SYSTEM)
    assert index.cached_tokens("a", digests, 11.0) == KV_BLOCK_SIZE
    index.sent("a", (), 19.0)
    assert index.num_blocks("a") == 0


def test_the_index_is_bounded_and_forgets_the_ends_of_old_prompts_first() -> None:
    index = PrefixIndex(max_blocks=4)
    old, new = (prompt_digests(make_request(prompt=(n, *SYSTEM))) for n in (1, 2))
    index.sent("a", old, 0.0)
    index.sent("a", new[:2], 1.0)
    assert index.num_blocks("a") == 4
    assert index.cached_tokens("a", new[:2], 1.0) == 2 * KV_BLOCK_SIZE
    assert index.cached_tokens("a", old, 1.0) == 2 * KV_BLOCK_SIZE


def test_only_the_head_of_a_very_long_prompt_is_digested() -> None:
    head = (5,) * (MAX_BLOCKS_PER_PROMPT * KV_BLOCK_SIZE)
    ends = (make_request(prompt=head + (n,) * 100) for n in (1, 2))
    one, other = map(prompt_digests, ends)
    assert len(one) == MAX_BLOCKS_PER_PROMPT
    assert one == other
