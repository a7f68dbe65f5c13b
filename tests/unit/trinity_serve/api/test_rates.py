"""What one key may use of a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequestError, RateLimitedError
from trinity_serve.api.rates import KeyAccount
from trinity_serve.config.security import ApiKeyRecord


def account(**limits: int) -> KeyAccount:
    return KeyAccount(ApiKeyRecord.model_validate({"name": "a", "sha256": "0" * 64, **limits}), 0.0)


def test_requests_beyond_the_limit_wait_for_as_long_as_the_refusal_says() -> None:
    used = account(requests_per_minute=2)
    used.request(0.0)
    used.request(0.0)
    with pytest.raises(RateLimitedError) as refused:
        used.request(0.0)
    assert refused.value.retry_after_s == pytest.approx(30.0)
    used.request(30.0)
    with pytest.raises(RateLimitedError):
        used.request(30.1)


def test_a_long_output_is_a_debt_that_later_requests_wait_for() -> None:
    used = account(tokens_per_minute=60)
    used.request(0.0)
    used.open(1, 10, 0.0)
    used.close(1, 110, 0.0)
    assert used.headers(0.0)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RateLimitedError, match="tokens per minute"):
        used.request(59.0)
    used.request(61.0)


def test_a_prompt_larger_than_the_limit_runs_when_nothing_else_did() -> None:
    used = account(tokens_per_minute=60)
    used.open(1, 1000, 0.0)
    used.close(1, 0, 0.0)
    with pytest.raises(RateLimitedError):
        used.open(1, 1, 60.0)


def test_choices_at_once_are_bounded_and_their_room_comes_back() -> None:
    used = account(max_concurrent_streams=3)
    used.open(2, 1, 0.0)
    with pytest.raises(RateLimitedError, match="concurrent streams"):
        used.open(2, 1, 0.0)
    used.close(2, 1, 0.0)
    used.open(3, 1, 0.0)
    with pytest.raises(InvalidRequestError, match="4 choices at once"):
        used.open(4, 1, 0.0)


def test_a_key_without_limits_is_never_refused_and_has_no_headers() -> None:
    used = account()
    for _ in range(100):
        used.request(0.0)
    assert used.headers(0.0) == {}


def test_the_headers_have_openais_names_and_units() -> None:
    used = account(requests_per_minute=60, tokens_per_minute=600)
    used.request(0.0)
    used.open(1, 100, 0.0)
    assert used.headers(0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10.000s",
    }


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200), st.integers(1, 20))
def test_no_minute_sees_more_than_two_buckets_full(pauses_s: list[float], limit: int) -> None:
    used, now_s, taken_at_s = account(requests_per_minute=limit), 0.0, []
    for pause_s in pauses_s:
        now_s += pause_s
        try:
            used.request(now_s)
        except RateLimitedError:
            continue
        taken_at_s.append(now_s)
    for first_s in taken_at_s:
        assert sum(first_s <= at_s < first_s + 60.0 for at_s in taken_at_s) <= 2 * limit
