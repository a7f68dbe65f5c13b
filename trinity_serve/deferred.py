"""A function by its name: imported where it is called, not where it is passed on.

Processes that only deploy or only pass on the insides of others stay without torch, which is a
second of processor time and 100 MB in each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Deferred(Generic[P, T_co]):
    """Calls `function` of `module`; both are names."""

    module: str
    function: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Import the function and call it."""
        return self.resolve()(*args, **kwargs)

    def resolve(self) -> Callable[P, T_co]:
        """Return the function. Raises `ImportError` or `AttributeError` when there is none."""
        function: Callable[P, T_co] = getattr(importlib.import_module(self.module), self.function)
        return function
