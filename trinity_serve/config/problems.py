"""pydantic's findings as this project's errors: the key by its full path, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.errors import ConfigError


def problems_of(
    error: ValidationError, source: str, prefix: str, model: type[BaseModel]
) -> list[ConfigError]:
    """Return one `ConfigError` per finding; `prefix` is the key under which `model` stands."""
    return [_problem(details, source, prefix, model) for details in error.errors()]


def _problem(
    details: ErrorDetails, source: str, prefix: str, model: type[BaseModel]
) -> ConfigError:
    key = _dotted(prefix, details["loc"])
    if details["type"] == "extra_forbidden":
        known = _known_keys(model, details["loc"][:-1])
        return unknown_key(source, key, str(details["loc"][-1]), known)
    if details["type"] == "missing":
        return ConfigError(source, key, "is required and missing", "a value")
    if details["type"] == "value_error":
        reason = str(details["ctx"]["error"]) if "ctx" in details else details["msg"]
        return ConfigError(source, key, reason, "a combination that means something")
    problem = f"{details['input']!r} is not allowed"
    return ConfigError(source, key, problem, details["msg"].removeprefix("Input should be "))


def unknown_key(source: str, key: str, name: str, known: list[str]) -> ConfigError:
    """Return the error for a key that does not exist there, with the nearest known ones."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return ConfigError(source, key, f"unknown key{hint}", ", ".join(sorted(known)) or "no keys")


def _dotted(prefix: str, loc: tuple[int | str, ...]) -> str:
    text = prefix
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the whole"


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the (nested) model at `loc`."""
    found: type[BaseModel] | None = model
    for part in loc:
        if found is not None and isinstance(part, str):
            found = _nested_model(found, part)
    return list(found.model_fields) if found is not None else []


def _nested_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    if field is None:
        return None
    candidates: tuple[object, ...] = (field.annotation, *get_args(field.annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def as_mapping(value: object, source: str, key: str) -> Mapping[str, object]:
    """Return `value` as a mapping with string keys, or raise `ConfigError`."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return value
    raise ConfigError(source, key, f"{value!r} is not a mapping", "a mapping of keys to values")
