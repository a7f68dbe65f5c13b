"""Greedy tokens of transformers, to compare with, and the prompts they are compared on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from transformers import AfmoeForCausalLM

from tests.support.serving import one_thread

EOS = 3
LENGTHS = (1, 3, 17, 31, 32, 33, 39, 40, 41, 42, 63, 64, 65, 90, 128, 200)
"""Of sixteen prompts: around the tiny model's KV block and window, and a few longer ones."""


class _Generates(Protocol):
    """`generate` as it is used here; its own annotations are not usable."""

    def generate(
        self, ids: torch.Tensor, *, max_new_tokens: int, min_new_tokens: int, do_sample: bool
    ) -> torch.Tensor: ...


def random_prompts(lengths: Iterable[int] = LENGTHS, seed: int = 7) -> list[list[int]]:
    """Return prompts of ids below 512 without special tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(13, 512, length).tolist() for length in lengths]


def transformers_tokens(
    checkpoint: Path, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """Return what `generate` gives greedily in float32."""
    loaded = AfmoeForCausalLM.from_pretrained(
        str(checkpoint), dtype=torch.float32, attn_implementation="eager"
    )
    model = cast(_Generates, loaded)
    tokens = []
    with one_thread():
        for prompt in prompts:
            output = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
            )
            tokens.append(output[0, len(prompt) :].tolist())
    return tokens


def assert_same_tokens(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> None:
    """Compare all that can be: `generate` suppresses eos to reach its minimum, ignore_eos does not.

    At least three quarters of the outputs must be without eos.
    """
    compared = [pair for pair in zip(ours, theirs, strict=True) if EOS not in pair[0]]
    assert 4 * len(compared) >= 3 * len(ours)
    for mine, his in compared:
        assert mine == his
