"""Which matrices of a checkpoint are quantised, and how. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.json_fields import JsonFields
from experts.quantised.scheme import Scheme


@dataclass(frozen=True)
class Patterns:
    """Modules: by their whole names, and by expressions that match from a name's start."""

    names: frozenset[str] = frozenset()
    expressions: tuple[re.Pattern[str], ...] = ()
    told: tuple[str, ...] = ()
    """As the configuration has them, sorted: the same for every version of Python."""

    def match(self, module: str) -> bool:
        """Whether the module is meant."""
        return module in self.names or any(each.match(module) for each in self.expressions)


@dataclass(frozen=True)
class Group:
    """Modules that are stored in the same way."""

    scheme: Scheme
    targets: Patterns
    all_linears: bool
    """Whether every linear is meant that no group names."""


@dataclass(frozen=True)
class Quantisation:
    """What is quantised in one checkpoint."""

    method: str
    """Whose dialect it is told in: ``compressed-tensors`` or ``modelopt``."""
    groups: tuple[Group, ...]
    ignored: Patterns

    @property
    def name(self) -> str:
        """The forms, e.g. ``fp8-block``."""
        return " + ".join(dict.fromkeys(str(group.scheme.form) for group in self.groups))

    def scheme_of(self, name: str) -> Scheme | None:
        """Return how tensor `name` is stored; None: under this name, as it is.

        Embedding, output head, router, norms and `expert_bias` never are quantised, whatever the
        configuration says: no published form has them so.
        """
        if not name.endswith("_proj.weight"):
            return None
        module = name.removesuffix(".weight")
        if self.ignored.match(module):
            return None
        named = (group for group in self.groups if group.targets.match(module))
        general = (group for group in self.groups if group.all_linears)
        found = next(named, None) or next(general, None)
        return None if found is None else found.scheme

    def canonical(self) -> bytes:
        """Return bytes that are equal for equal descriptions, for a fingerprint."""
        groups = [(str(g.scheme), g.targets.told, g.all_linears) for g in self.groups]
        return repr((self.method, groups, self.ignored.told)).encode()


def nested(fields: JsonFields, key: str) -> JsonFields:
    """Return the object under `key`. Raises ConfigError when it is missing or none."""
    value = fields.required(key)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise fields.error(key, f"is {value!r}", "an object")
    return JsonFields(value, f"{fields.source}: {key}")


def texts(fields: JsonFields, key: str) -> tuple[str, ...]:
    """Return a list of strings, empty when absent or null. Raises ConfigError."""
    value = fields.mapping.get(key) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise fields.error(key, f"is {value!r}", "a list of strings")
    return tuple(value)


def refuse_others(fields: JsonFields, known: frozenset[str]) -> None:
    """Refuse a key outside `known` that says something. Raises ConfigError."""
    for key, value in fields.mapping.items():
        if key not in known and value not in (None, False, {}, [], ""):
            supported = f"only {', '.join(sorted(known))} are read"
            raise fields.error(key, f"is {value!r}", supported)
