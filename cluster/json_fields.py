"""Strict reading of a flat JSON object: a missing or ill-typed key is a `ConfigError`.

Knows nothing of what the keys mean; `cluster.model_config` and the generation defaults do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ConfigError


def load_json_object(path: Path) -> Mapping[str, object]:
    """Return the JSON object in `path`.

    Raises:
        ConfigError: the file is missing, unreadable, not JSON, or not an object.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), "(file)", str(error), "a readable JSON file") from error
    if not isinstance(loaded, dict):
        found = f"holds {type(loaded).__name__}"
        raise ConfigError(str(path), "(file)", found, "a JSON object at the top level")
    return loaded


class JsonFields:
    """Typed access to the keys of one object. `source` names it in errors."""

    def __init__(self, mapping: Mapping[str, object], source: str) -> None:
        self.mapping = mapping
        self.source = source

    def error(self, key: str, problem: str, supported: str) -> ConfigError:
        """Return (not raise) an error about `key`."""
        return ConfigError(self.source, key, problem, supported)

    def has(self, key: str) -> bool:
        """Whether `key` is there with a value other than null."""
        return self.mapping.get(key) is not None

    def required(self, key: str) -> object:
        """Return the value of `key`, which must be there and not null."""
        if not self.has(key):
            problem = "is null" if key in self.mapping else "is missing"
            raise self.error(key, problem, "an explicit value; nothing is guessed")
        return self.mapping[key]

    def integer(self, key: str, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`."""
        value = self.required(key)
        if type(value) is not int or value < minimum:
            raise self.error(key, f"is {value!r}", f"an integer of at least {minimum}")
        return value

    def positive(self, key: str) -> float:
        """Return a finite number above zero."""
        value = self.required(key)
        if type(value) not in (int, float) or not 0 < _as_float(value) < math.inf:
            raise self.error(key, f"is {value!r}", "a finite number above 0")
        return _as_float(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """Return a number in [low, high], or `default` when the key is absent or null."""
        if not self.has(key):
            return default
        value = self.mapping[key]
        if type(value) not in (int, float) or not low <= _as_float(value) <= high:
            raise self.error(key, f"is {value!r}", f"a number from {low:g} to {high:g}")
        return _as_float(value)

    def flag(self, key: str) -> bool:
        """Return a boolean."""
        value = self.required(key)
        if not isinstance(value, bool):
            raise self.error(key, f"is {value!r}", "true or false")
        return value

    def token_ids(self, key: str) -> tuple[int, ...] | None:
        """Return token ids (the file has one integer or a list), None when absent or null."""
        value = self.mapping.get(key)
        if value is None:
            return None
        ids = tuple(value) if isinstance(value, list) else (value,)
        if not ids or any(type(token) is not int or token < 0 for token in ids):
            raise self.error(key, f"is {value!r}", "a token id or a list of token ids")
        return ids

    def token_id(self, key: str) -> int | None:
        """Return one token id, None when absent or null."""
        ids = self.token_ids(key)
        if ids is not None and len(ids) != 1:
            raise self.error(key, f"is {list(ids)!r}", "one token id")
        return None if ids is None else ids[0]

    def refuse_unless(self, key: str, supported: object, required: bool = False) -> None:
        """Refuse any value of `key` but `supported`; absence (or null) is fine unless required."""
        if not required and not self.has(key):
            return
        value = self.required(key)
        if type(value) is not type(supported) or value != supported:
            shown = json.dumps(supported)
            raise self.error(key, f"is {json.dumps(value)}", f"{shown} only")


def _as_float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
