"""What one API key may use: requests and tokens per minute, and choices at once.

Pure: time is passed in, and an event loop owns each account. Tokens are charged when they are
known: the prompt's at the start, the output's at the end. A key whose balance is used up waits
until it is above zero again, so nothing is counted per token while a stream runs. Each ingress
keeps accounts of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import InvalidRequestError, RateLimitedError
from trinity_serve.config.security import ApiKeyRecord

_MINUTE_S = 60.0
_STREAM_RETRY_S = 1.0


@dataclass(slots=True)
class Bucket:
    """So many per minute; unused ones are kept for up to a minute, debts are paid off by time."""

    per_minute: int
    level: float
    at_s: float

    @classmethod
    def full(cls, per_minute: int, now_s: float) -> Bucket:
        """Return a bucket of which nothing has been used."""
        return cls(per_minute, float(per_minute), now_s)

    def refill(self, now_s: float) -> None:
        """Add what has accrued."""
        accrued = max(0.0, now_s - self.at_s) * self.per_minute / _MINUTE_S
        self.level = min(float(self.per_minute), self.level + accrued)
        self.at_s = max(self.at_s, now_s)

    def wait_s(self, amount: float) -> float:
        """Return how long until `amount` are there (a whole bucket at most); 0 when they are."""
        missing = min(amount, float(self.per_minute)) - self.level
        return max(0.0, missing * _MINUTE_S / self.per_minute)

    def full_in_s(self) -> float:
        """Return how long until it is full again."""
        return (self.per_minute - self.level) * _MINUTE_S / self.per_minute


class KeyAccount:
    """What one key has used of its limits."""

    def __init__(self, record: ApiKeyRecord, now_s: float) -> None:
        self.name = record.name
        self._requests = _bucket(record.requests_per_minute, now_s)
        self._tokens = _bucket(record.tokens_per_minute, now_s)
        self._max_streams = record.max_concurrent_streams
        self.num_streams = 0

    def request(self, now_s: float) -> None:
        """Count a request. Raises `RateLimitedError`; what is refused is not counted."""
        for what, bucket, amount in (
            ("requests per minute", self._requests, 1.0),
            # A fraction of a token: whoever is in debt waits.
            ("tokens per minute", self._tokens, 1e-9),
        ):
            if bucket is not None:
                _refill_or_refuse(self.name, what, bucket, amount, now_s)
        if self._requests is not None:
            self._requests.level -= 1.0

    def open(self, num_choices: int, prompt_tokens: int, now_s: float) -> None:
        """Take the room for a generation and charge its prompt; `close` gives the room back.

        Raises `RateLimitedError`, or `InvalidRequestError` for what could never run.
        """
        limit = self._max_streams
        if limit is not None and num_choices > limit:
            message = f"{num_choices} choices at once; this API key's limit is {limit}."
            raise InvalidRequestError("n", message)
        if limit is not None and self.num_streams + num_choices > limit:
            raise RateLimitedError(self.name, "concurrent streams", limit, _STREAM_RETRY_S)
        if self._tokens is not None:
            prompt = float(prompt_tokens)
            _refill_or_refuse(self.name, "tokens per minute", self._tokens, prompt, now_s)
            self._tokens.level -= prompt
        self.num_streams += num_choices

    def close(self, num_choices: int, completion_tokens: int, now_s: float) -> None:
        """Give a generation's room back and charge what it made."""
        self.num_streams -= num_choices
        if self._tokens is not None:
            self._tokens.refill(now_s)
            self._tokens.level -= completion_tokens

    def headers(self, now_s: float) -> dict[str, str]:
        """Return what is left, by OpenAI's header names; nothing of what is not limited."""
        found = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                bucket.refill(now_s)
                left = max(0, math.floor(bucket.level))
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(left)
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.full_in_s():.3f}s"
        return found


def _bucket(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket.full(per_minute, now_s)


def _refill_or_refuse(name: str, what: str, bucket: Bucket, amount: float, now_s: float) -> None:
    bucket.refill(now_s)
    wait_s = bucket.wait_s(amount)
    if wait_s > 0.0:
        raise RateLimitedError(name, what, bucket.per_minute, wait_s)
