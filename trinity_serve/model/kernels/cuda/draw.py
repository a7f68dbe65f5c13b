"""A seeded draw on the device, with the bits of C's.

V vocabulary. Weights are whole numbers of 2^-44 (see cpu/src/draw.c): their sums are exact, so the
order in which threads add them, and atomics, change nothing.

An id's key is its logit in an order of integers, best lowest, above its number: smaller keys come
first, and no two are equal.

Source: Philox-4x32-10 of Salmon et al., SC 2011, as triton.language has it.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit
from trinity_serve.model.kernels.cuda.argmax import order_of
from trinity_serve.model.kernels.cuda.exact import exp_as_in_c

BUCKETS = tl.constexpr(512)
_PER_NAT = tl.constexpr(16.0)
_WEIGHT_ONE = tl.constexpr(float(2**44))
_SMALLEST_NORMAL = tl.constexpr(float.fromhex("0x1p-126"))
_NO_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@jit
def _scaled(x: tl.tensor, peak: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """(x - peak) / temperature with C's rounding; denormals count as zero there."""
    scaled = tl.div_rn(x - peak, tl.broadcast_to(temperature, x.shape))
    return tl.where(scaled > -_SMALLEST_NORMAL, 0.0, scaled)


@jit
def _weight(scaled: tl.tensor) -> tl.tensor:
    return (exp_as_in_c(scaled) * _WEIGHT_ONE).to(tl.int64)


@jit
def _bucket(scaled: tl.tensor) -> tl.tensor:
    """A 16th of a nat each, best first; the last takes what is left, and weighs nothing."""
    return tl.minimum(scaled * -_PER_NAT, BUCKETS - 1.0).to(tl.int32)


@jit
def fill_buckets_kernel(
    logits: tl.tensor,
    peaks: tl.tensor,
    reals: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program = (row, piece of V): add kept ids' weights and numbers to their buckets.

    `reals` is float64 (R, 4): temperature, top_p, log(min_p), and a fourth that is not used here;
    `sums` int64 and `counts` int32 are (R, BUCKETS).
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * V + i, mask=i < V, other=-float("inf"))
    temperature = tl.maximum(tl.load(reals + row * 4), 1e-20).to(tl.float32)
    scaled = _scaled(x, tl.load(peaks + row), temperature)
    kept = (i < V) & (scaled >= tl.load(reals + row * 4 + 2).to(tl.float32))
    bucket = _bucket(scaled)
    # Most ids of a peaked row are in the last bucket: they are counted before they meet in memory.
    last: tl.constexpr = BUCKETS - 1
    to = row * BUCKETS + bucket
    tl.atomic_add(sums + to, _weight(scaled), mask=kept & (bucket < last))
    tl.atomic_add(counts + to, kept.to(tl.int32), mask=kept & (bucket < last))
    in_last = tl.sum((kept & (bucket == last)).to(tl.int32), axis=0)
    tl.atomic_add(counts + row * BUCKETS + last, in_last)


@jit
def _key(x: tl.tensor, i: tl.tensor, ID_BITS: tl.constexpr) -> tl.tensor:
    return ((~order_of(x)).to(tl.int64) << ID_BITS) + i


@jit
def _amount_to(
    key: tl.tensor,
    logits: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    members: tl.tensor,
    count: tl.tensor,
    ID_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_COUNT: tl.constexpr,
) -> tl.tensor:
    """What the members up to `key` weigh, or their number."""
    lane = tl.arange(0, BLOCK)
    amount = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, count, BLOCK):
        used = first + lane < count
        i = tl.load(members + first + lane, mask=used, other=0)
        x = tl.load(logits + i, mask=used, other=-float("inf"))
        if BY_COUNT:
            value = tl.full((BLOCK,), 1, tl.int64)
        else:
            value = _weight(_scaled(x, peak, temperature))
        amount += tl.where(used & (_key(x, i, ID_BITS) <= key), value, 0)
    return tl.sum(amount, axis=0)


@jit
def _first_key(
    logits: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    log_min_p: tl.tensor,
    bucket: tl.tensor,
    needed: tl.tensor,
    members: tl.tensor,
    V: tl.constexpr,
    ID_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BY_COUNT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The first key of a bucket up to which its ids amount to `needed`, and what they weigh.

    An amount is a weight, or 1 with BY_COUNT. The bucket's ids are gathered into `members`
    (scratch of V int32); the key is found by halving the range of their keys.
    """
    lane = tl.arange(0, BLOCK)
    lowest = tl.full((BLOCK,), _NO_KEY, tl.int64)
    highest = tl.full((BLOCK,), -_NO_KEY, tl.int64)
    count = 0
    # Whoever read the scratch before must be done.
    tl.debug_barrier()
    for first in range(0, V, BLOCK):
        i = first + lane
        x = tl.load(logits + i, mask=i < V, other=-float("inf"))
        scaled = _scaled(x, peak, temperature)
        inside = (i < V) & (scaled >= log_min_p) & (_bucket(scaled) == bucket)
        place = count + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        tl.store(members + place, i, mask=inside)
        key = _key(x, i, ID_BITS)
        lowest = tl.minimum(lowest, tl.where(inside, key, _NO_KEY))
        highest = tl.maximum(highest, tl.where(inside, key, -_NO_KEY))
        count += tl.sum(inside.to(tl.int32), axis=0)
    tl.debug_barrier()
    low = tl.min(lowest, axis=0)
    high = tl.max(highest, axis=0)
    while low < high:
        middle = low + (high - low) // 2
        amount = _amount_to(
            middle, logits, peak, temperature, members, count, ID_BITS, BLOCK, BY_COUNT
        )
        high = tl.where(amount >= needed, middle, high)
        low = tl.where(amount >= needed, low, middle + 1)
    weight = _amount_to(low, logits, peak, temperature, members, count, ID_BITS, BLOCK, False)
    return low, weight


@jit
def _rounded_up(share: tl.tensor) -> tl.tensor:
    """The least whole number that is not below a positive float64, int64."""
    whole = share.to(tl.int64)
    return whole + (whole.to(tl.float64) < share).to(tl.int64)


@jit
def _uniform(whole: tl.tensor) -> tl.tensor:
    """One float64 in [0, 1) of 53 random bits, as `engine.philox.uniforms` makes it.

    `whole` is at int64 seed, choice and output index.
    """
    index = tl.load(whole + 2)
    low = (index & 0xFFFFFFFF).to(tl.uint32)
    high = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    choice = (tl.load(whole + 1) & 0xFFFFFFFF).to(tl.uint32)
    first, second, _, _ = tl.philox(tl.load(whole), low, high, choice, choice * 0)
    bits = (first >> 5).to(tl.float64) * 67108864.0 + (second >> 6).to(tl.float64)
    return bits * (1.0 / 9007199254740992.0)


@jit
def draw_kernel(
    logits: tl.tensor,
    peaks: tl.tensor,
    reals: tl.tensor,
    whole: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    members: tl.tensor,
    ids: tl.tensor,
    V: tl.constexpr,
    ID_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEEDED: tl.constexpr,
) -> None:
    """Program = row: one id by the inverse of the cumulative weights over the kept ids, best first.

    `reals` is float64 (R, 4): temperature, top_p, log(min_p), and the uniform where it is not made
    here (SEEDED). `whole` is int64 (R, 4): seed, choice, output index, top_k. `members` is scratch,
    int32 (R, V).
    """
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.maximum(tl.load(reals + row * 4), 1e-20).to(tl.float32)
    top_p = tl.load(reals + row * 4 + 1)
    log_min_p = tl.load(reals + row * 4 + 2).to(tl.float32)
    top_k = tl.load(whole + row * 4 + 3)
    peak = tl.load(peaks + row)
    own, scratch = logits + row * V, members + row * V
    b = tl.arange(0, BUCKETS)
    sums_B = tl.load(sums + row * BUCKETS + b)
    if top_k > 0:
        counts_B = tl.load(counts + row * BUCKETS + b).to(tl.int64)
        num_to_B = tl.cumsum(counts_B, axis=0)
        cut = tl.min(tl.where(num_to_B > top_k, b, BUCKETS), axis=0)
        left = top_k - tl.max(tl.where(b < cut, num_to_B, 0), axis=0)
        cut_weight = left * 0
        if (cut < BUCKETS) & (left > 0):
            _, cut_weight = _first_key(
                own,
                peak,
                temperature,
                log_min_p,
                cut,
                left,
                scratch,
                V,
                ID_BITS,
                BLOCK,
                True,
            )
        sums_B = tl.where(b < cut, sums_B, tl.where(b == cut, cut_weight, 0))
    up_to_B = tl.cumsum(sums_B, axis=0)
    total = tl.sum(sums_B, axis=0)
    if top_p < 1.0:
        share = _rounded_up(top_p * total.to(tl.float64))
        needed = tl.minimum(tl.maximum(share, 1), total)
        bucket = tl.min(tl.where(up_to_B >= needed, b, BUCKETS), axis=0)
        before = tl.max(tl.where(b < bucket, up_to_B, 0), axis=0)
        _, weight = _first_key(
            own,
            peak,
            temperature,
            log_min_p,
            bucket,
            needed - before,
            scratch,
            V,
            ID_BITS,
            BLOCK,
            False,
        )
        total = before + weight
    uniform = _uniform(whole + row * 4) if SEEDED else tl.load(reals + row * 4 + 3)
    wanted = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64) + 1, total)
    at = tl.min(tl.where(up_to_B >= wanted, b, BUCKETS), axis=0)
    passed = tl.max(tl.where(b < at, up_to_B, 0), axis=0)
    key, _ = _first_key(
        own,
        peak,
        temperature,
        log_min_p,
        at,
        wanted - passed,
        scratch,
        V,
        ID_BITS,
        BLOCK,
        False,
    )
    tl.store(ids + row, key & ((1 << ID_BITS) - 1))
