"""What the configuration says of limits is what the API holds requests to."""

from __future__ import annotations

import pytest

from trinity_serve.api.limits import ApiLimits
from trinity_serve.config import IngressConfig
from trinity_serve.config.limits import LimitsConfig


def test_defaults_are_those_of_the_configuration() -> None:
    assert ApiLimits.of(IngressConfig()) == ApiLimits()


@pytest.mark.parametrize("key", LimitsConfig.model_fields)
def test_every_key_of_limits_changes_one_limit(key: str) -> None:
    value = type(getattr(LimitsConfig(), key))(1)
    ingress = IngressConfig.model_validate({"max_choices": 1, "limits": {key: value}})
    before, after = ApiLimits.of(IngressConfig(max_choices=1)), ApiLimits.of(ingress)
    changed = [name for name in before.__slots__ if getattr(before, name) != getattr(after, name)]
    assert len(changed) == 1
    assert getattr(after, changed[0]) == value
