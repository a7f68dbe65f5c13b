"""Where a step's time goes: nested calls, each counted without those inside it."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from experts.kernels.cpu.library import Signatures, open_library

P = ParamSpec("P")
R = TypeVar("R")
NATIVE = "C "
"""Names of compiled functions begin so."""


class Spans:
    """Nanoseconds by name, of the calls that were wrapped. Used by one thread.

    A wrapper costs about half a microsecond, which counts for whoever called it.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns = clock_ns
        self._inner_ns = [0]
        """Per open call, what wrapped calls inside it took; the first is nobody's."""
        self.own_ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def clear(self) -> None:
        """Forget what was measured."""
        self.own_ns.clear()
        self.calls.clear()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return `function`, counted under `name`."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            self._inner_ns.append(0)
            begun_ns = self._clock_ns()
            try:
                return function(*args, **kwargs)
            finally:
                took_ns = self._clock_ns() - begun_ns
                self.own_ns[name] += took_ns - self._inner_ns.pop()
                self.calls[name] += 1
                self._inner_ns[-1] += took_ns

        return call

    def open_library(self, path: Path, signatures: Signatures) -> ctypes.CDLL:
        """Stand in for `open_library`: every function of the library is counted."""
        library = open_library(path, signatures)
        for name in signatures:
            setattr(library, name, self.timed(NATIVE + name, getattr(library, name)))
        return library
