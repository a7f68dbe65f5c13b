"""A quantised checkpoint serves the bits of the weights that it stands for, on 1 shard and on 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.quantised import RECIPES, SMALL, recipe_name, write_dequantised
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import SamplingParams
from trinity_serve.synthetic import Recipe, write_checkpoint

PROMPT = tuple(range(20, 75))
PARAMS = SamplingParams(max_tokens=6, seed=11, temperature=0.8, top_p=0.9, ignore_eos=True)


def outcome(checkpoint: Path, num_shards: int) -> tuple[list[int], Tensor]:
    """Return tokens and the logits they were chosen from."""
    serving = open_serving(config_for(checkpoint, num_shards=num_shards))
    return serving.run([PROMPT], PARAMS)[0], serving.sampler.of(PROMPT)


@pytest.fixture(scope="module")
def unquantised(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Logits of the model before it was quantised."""
    path = write_checkpoint(SMALL, tmp_path_factory.mktemp("plain") / "checkpoint")
    return outcome(path, 1)[1]


@pytest.mark.parametrize("recipe", RECIPES, ids=recipe_name)
def test_logits_are_those_of_a_plain_checkpoint_of_the_dequantised_weights(
    recipe: Recipe, unquantised: Tensor, tmp_path: Path
) -> None:
    quantised = write_checkpoint(SMALL, tmp_path / "quantised", recipe=recipe)
    plain = write_dequantised(quantised, tmp_path / "plain")
    tokens, logits = outcome(plain, 1)
    for num_shards in (1, 4):
        their_tokens, their_logits = outcome(quantised, num_shards)
        assert their_tokens == tokens
        assert torch.equal(their_logits, logits)
    assert not torch.equal(logits[0], unquantised[0])
    # Near enough to be the same model: a swapped nibble or an inverted scale is far off.
    assert torch.cosine_similarity(logits[0], unquantised[0], dim=0) > 0.7
