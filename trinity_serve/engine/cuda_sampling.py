"""Sampling on the device, for a rank whose model kernels are there.

A row whose token needs nothing of the host (no processors, no log-probabilities) is chosen where
its logits are; one copy brings the tokens of all such rows. Other rows' logits are copied, and
their draws go back to the device: a row's token is the same either way.

R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.errors import NonFiniteLogitsError
from trinity_serve.engine.sampler import Sample, SampledChoice, Sampler
from trinity_serve.engine.sampling_ops import DrawSpec, Float32, Float64, NumpyVocabularyOps
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cuda.step_memory import upload
from trinity_serve.model.kernels.cuda.vocabulary import CudaVocabulary

_LOW_64 = 0xFFFFFFFF_FFFFFFFF


class CudaVocabularyOps(NumpyVocabularyOps):
    """`VocabularyOps` of rows on the host; draws are the device's."""

    def __init__(self, vocabulary: CudaVocabulary) -> None:
        self._vocabulary = vocabulary

    def draw(self, logits_RV: Float32, max_R: Float32, specs: list[DrawSpec]) -> list[int]:
        """See `VocabularyOps`."""
        reals_R4 = np.array(
            [(s.temperature, s.top_p, _log(s.min_p), s.uniform) for s in specs], np.float64
        )
        whole_R4 = np.array([(0, 0, 0, s.top_k) for s in specs], np.int64)
        device = self._vocabulary.device
        logits, peaks = (upload(part, device) for part in (logits_RV, max_R))
        ids_R = self._vocabulary.draw(logits, peaks, reals_R4, whole_R4, seeded=False)
        drawn: list[int] = ids_R.tolist()
        return drawn


class CudaSampler(Sampler):
    """`Sampler` of logits on the device; waits once, for the tokens."""

    def __init__(self, vocabulary: CudaVocabulary) -> None:
        super().__init__(CudaVocabularyOps(vocabulary))
        self._vocabulary = vocabulary

    def sample(self, logits_RV: Tensor, choices: Sequence[SampledChoice]) -> list[Sample]:
        """See `Sampler.sample`."""
        on_host = [row for row, choice in enumerate(choices) if _needs_host(choice)]
        if len(on_host) == len(choices):
            return super().sample(logits_RV, choices)
        samples = self._sample_there(logits_RV, choices)
        if on_host:
            own = super().sample(logits_RV[on_host], [choices[row] for row in on_host])
            for row, sample in zip(on_host, own, strict=True):
                samples[row] = sample
        return samples

    def _sample_there(self, logits_RV: Tensor, choices: Sequence[SampledChoice]) -> list[Sample]:
        best_R, peak_R = self._vocabulary.argmax(logits_RV)
        if any(choice.params.temperature > 0.0 for choice in choices):
            drawn_R = self._vocabulary.draw(
                logits_RV, peak_R, _reals(choices), _whole(choices), seeded=True
            )
            greedy = np.array([choice.params.temperature == 0.0 for choice in choices])
            largest_R = upload(greedy, self._vocabulary.device) | ~torch.isfinite(peak_R)
            best_R = torch.where(largest_R, best_R, drawn_R)
        # Both fit a float64, so that one copy waits once.
        both_2R = torch.stack((best_R.double(), peak_R.double())).cpu().numpy()
        return [
            Sample(int(token_id))
            if math.isfinite(peak)
            else Sample(int(token_id), error=NonFiniteLogitsError(float(peak)))
            for token_id, peak in both_2R.T.tolist()
        ]


def _needs_host(choice: SampledChoice) -> bool:
    return choice.params.num_logprobs is not None or bool(choice.active_processors())


def _log(min_p: float) -> float:
    return math.log(min_p) if min_p > 0.0 else -math.inf


def _reals(choices: Sequence[SampledChoice]) -> Float64:
    """Greedy rows get a temperature too: what is drawn of them is not used."""
    reals_R4: Float64 = np.array(
        [(c.params.temperature or 1.0, c.params.top_p, _log(c.params.min_p), 0.0) for c in choices],
        np.float64,
    )
    return reals_R4


def _whole(choices: Sequence[SampledChoice]) -> Int64:
    seeds_R = np.array([c.params.seed & _LOW_64 for c in choices], np.uint64).view(np.int64)
    rest_R3 = np.array([(c.choice, c.num_outputs, c.params.top_k) for c in choices], np.int64)
    return np.concatenate([seeds_R[:, None], rest_R3], axis=1)


def open_on(device: torch.device) -> CudaSampler:
    """Return a sampler of logits on `device`."""
    return CudaSampler(CudaVocabulary(device))
