"""What each rank has probably cached: the blocks of the prompts that were sent there.

Approximate on purpose. Nobody tells an ingress what a rank evicts or what other ingresses send, and
nobody has to: a wrong guess costs the rank a prefill that another might have been spared. Pure:
time is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from trinity_serve.engine.prefix_cache import BlockDigests
from trinity_serve.engine.request import GenerationRequest
from trinity_serve.model.batch import KV_BLOCK_SIZE

MAX_BLOCKS_PER_RANK = 32_768
"""A million tokens: more than the prefix cache of a rank of this size keeps, and some 5 MB here."""
MAX_BLOCKS_PER_PROMPT = 1024
"""Longer prompts are told apart by their first 32,768 tokens; to hash those takes about 2 ms."""
MAX_AGE_S = 600.0


def prompt_digests(request: GenerationRequest) -> tuple[bytes, ...]:
    """Return the digests under which a rank's prefix cache looks for this context's full blocks."""
    context = request.prompt_ids + request.emitted_ids
    # The last token is always computed: a block that ends with it is never found (`longest_hit`).
    num_blocks = min((len(context) - 1) // KV_BLOCK_SIZE, MAX_BLOCKS_PER_PROMPT)
    tokens_T = np.array(context[: num_blocks * KV_BLOCK_SIZE], np.int64)
    digests = BlockDigests(request.cache_salt)
    return tuple(digests.at(block_idx, tokens_T) for block_idx in range(num_blocks))


class PrefixIndex:
    """Digests by rank, the longest unused forgotten first. Used by one thread."""

    def __init__(self, max_blocks: int = MAX_BLOCKS_PER_RANK, max_age_s: float = MAX_AGE_S) -> None:
        self._max_blocks = max_blocks
        self._max_age_s = max_age_s
        self._used_at_s: dict[str, OrderedDict[bytes, float]] = {}

    def num_blocks(self, rank: str) -> int:
        """Return how many blocks are remembered of `rank`."""
        return len(self._used_at_s.get(rank, ()))

    def cached_tokens(self, rank: str, digests: Sequence[bytes], now_s: float) -> int:
        """Return how many leading tokens of the context with these blocks `rank` seems to have."""
        used_at_s = self._used_at_s.get(rank)
        if not used_at_s:
            return 0
        oldest_s = now_s - self._max_age_s
        num_blocks = 0
        for digest in digests:
            if used_at_s.get(digest, -np.inf) < oldest_s:
                break
            num_blocks += 1
        return num_blocks * KV_BLOCK_SIZE

    def sent(self, rank: str, digests: Sequence[bytes], now_s: float) -> None:
        """Take note that the context with these blocks goes to `rank`."""
        used_at_s = self._used_at_s.setdefault(rank, OrderedDict())
        # As the rank does it: of one context, the last blocks are evicted first.
        for digest in reversed(digests):
            used_at_s[digest] = now_s
            used_at_s.move_to_end(digest)
        oldest_s = now_s - self._max_age_s
        while used_at_s and (
            len(used_at_s) > self._max_blocks or next(iter(used_at_s.values())) < oldest_s
        ):
            used_at_s.popitem(last=False)

    def keep_only(self, ranks: set[str]) -> None:
        """Forget all other ranks: what they had is gone with them."""
        for rank in self._used_at_s.keys() - ranks:
            del self._used_at_s[rank]
