"""The expert map as bytes to send, asked of the pool at most once a second for all who look."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable

import orjson

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
        self._placement = ""
        self._whole = self._traffic = b""

    async def body(self, known: str) -> bytes:
        """Return the JSON to send, without the placement for a caller who knows it.

        `known`: the version that the caller has. Raises what asking raises.
        """
        async with self._asking:
            if self._clock() - self._asked_at_s >= FRESH_S:
                self._encode(await self._ask())
                self._asked_at_s = self._clock()
        return self._traffic if known == self._placement else self._whole

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
