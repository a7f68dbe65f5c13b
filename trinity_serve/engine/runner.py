"""What the engine knows of the model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trinity_serve.model.batch import ForwardBatch


class ModelRunner(Protocol):
    """Runs forward passes. `forward` and `wait` are called on the engine's thread only."""

    vocab_size: int

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Compute the batch and return (R, vocab_size) float32 logits; blocks until they are there.

        May raise a `TrinityError`: then the requests of that step end with it.
        """
        ...

    def wait(self, timeout_s: float) -> None:
        """Idle: answer pings until `timeout_s` is over or `wake` was called since the last wait."""
        ...

    def last_sign_at_s(self) -> float:
        """Return when a forward pass last showed that it goes on, on the monotonic clock.

        0.0 from a runner that shows nothing within a pass. Thread-safe.
        """
        ...

    def wake(self) -> None:
        """End a `wait` that is under way, or else the next one. Thread-safe."""
        ...
