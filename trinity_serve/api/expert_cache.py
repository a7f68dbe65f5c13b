"""The expert map as bytes to send, asked of the pool at most once a second for all who look."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable

import orjson

from cluster.errors import TrinityError
from cluster.expert_map import ExpertMap

FRESH_S = 0.9
"""Below the second at which pages ask, so that one page alone never sees a map twice."""


class ExpertCache:
    """Used on one event loop."""

    def __init__(
        self, ask: Callable[[], Awaitable[ExpertMap]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at_s = -FRESH_S
        self._num_failed = 0
        self._failure: TrinityError | None = None
        self._placement = ""
        self._whole = self._traffic = b""

    async def body(self, known: str) -> bytes:
        """Return the JSON to send, without the placement for a caller who knows it.

        `known`: the version that the caller has. Raises what asking raises, to all who waited for
        it: a pool that is silent keeps them once, not one after another.
        """
        num_failed = self._num_failed
        async with self._asking:
            if self._num_failed != num_failed and self._failure is not None:
                raise self._failure
            if self._clock() - self._asked_at_s >= FRESH_S:
                await self._renew()
        return self._traffic if known == self._placement else self._whole

    async def _renew(self) -> None:
        try:
            self._encode(await self._ask())
        except TrinityError as error:
            self._num_failed, self._failure = self._num_failed + 1, error
            raise
        self._asked_at_s = self._clock()

    def _encode(self, told: ExpertMap) -> None:
        fields: dict[str, object] = {
            "placement": told.placement,
            "num_moe_layers": told.num_moe_layers,
            "num_experts": told.num_experts,
            "num_copies": told.num_copies,
            "max_rows": told.max_rows,
            "levels": base64.b64encode(told.levels_LE).decode(),
            "copies": None,
        }
        self._placement, self._traffic = told.placement, orjson.dumps(fields)
        fields["copies"] = base64.b64encode(told.copies_LEC).decode()
        self._whole = orjson.dumps(fields)
