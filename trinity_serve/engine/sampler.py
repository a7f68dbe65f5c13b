"""From logits to one token per choice, and its log-probabilities.

A choice's token is a function of its own logits, its parameters and (seed, choice, output index):
not of the batch, the step, or how often it was computed. The output index, not the absolute
position, keys the draw, so that truncating a prompt does not change which random numbers it meets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cluster.errors import NonFiniteLogitsError, TrinityError
from trinity_serve.engine.logits_processors import LogitsProcessor
from trinity_serve.engine.philox import uniforms
from trinity_serve.engine.request import SamplingParams, TokenLogprobs
from trinity_serve.engine.sampling_ops import DrawSpec, Float32, NumpyVocabularyOps, VocabularyOps
from trinity_serve.model.batch import Int64

Bools = npt.NDArray[np.bool_]

_GROUP_ELEMENTS = 1 << 15
"""Logits worked on at once: float64 intermediates stay in the processor's caches."""


class SampledChoice(Protocol):
    """What the sampler reads of a choice."""

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        ...

    @property
    def choice(self) -> int:
        """Its number within the request."""
        ...

    @property
    def num_outputs(self) -> int:
        """Index of the token that is chosen now."""
        ...

    @property
    def prompt_ids(self) -> Int64:
        """The prompt."""
        ...

    @property
    def output_ids(self) -> Int64:
        """Tokens chosen so far."""
        ...

    def active_processors(self) -> list[LogitsProcessor]:
        """Return what changes this token's logits, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One choice's next token, or why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: TrinityError | None = None


class Sampler:
    """Chooses tokens. Stateless but for its arithmetic backend."""

    def __init__(self, ops: VocabularyOps | None = None) -> None:
        self._ops = ops or NumpyVocabularyOps()

    def sample(self, logits_RV: Tensor, choices: Sequence[SampledChoice]) -> list[Sample]:
        """Choose a token for each row.

        Args:
            logits_RV: (R, V) float32; moved to the host if it is elsewhere (this waits for it).
            choices: R choices, in row order.

        Returns:
            R samples; a row whose logits are not finite has `error` set instead of a token.
        """
        logits: Float32 = logits_RV.detach().cpu().numpy()
        rows = np.arange(len(choices))
        best_R = self._ops.argmax(logits)
        max_R = logits[rows, best_R]
        finite_R = np.isfinite(max_R)
        token_ids = best_R.tolist()
        special = [row for row in _special_rows(choices) if finite_R[row]]
        specs = _draw_specs(choices, special)
        group_size = max(1, _GROUP_ELEMENTS // logits.shape[1])
        errors: dict[int, TrinityError] = {}
        for start in range(0, len(special), group_size):
            group = special[start : start + group_size]
            self._sample_group(logits, choices, group, specs, token_ids, finite_R, errors)
        logprobs = self._logprobs(logits, max_R, choices, token_ids, finite_R)
        return [
            Sample(token_id, logprobs.get(row))
            if finite_R[row]
            else Sample(token_id, error=errors.get(row) or NonFiniteLogitsError(float(max_R[row])))
            for row, token_id in enumerate(token_ids)
        ]

    def _sample_group(
        self,
        logits_RV: Float32,
        choices: Sequence[SampledChoice],
        rows: list[int],
        specs: dict[int, DrawSpec],
        token_ids: list[int],
        finite_R: Bools,
        errors: dict[int, TrinityError],
    ) -> None:
        """Fill in the tokens of rows that are processed or drawn; note rows left without any."""
        own_GV = logits_RV[rows]
        for own_V, row in zip(own_GV, rows, strict=True):
            try:
                _process(own_V, choices[row])
            except TrinityError as error:
                errors[row] = error
                own_V.fill(-np.inf)
        best_G = self._ops.argmax(own_GV)
        max_G = own_GV[np.arange(len(rows)), best_G]
        finite_R[rows] = np.isfinite(max_G)
        for row, best in zip(rows, best_G.tolist(), strict=True):
            token_ids[row] = best
        drawn = [idx for idx, row in enumerate(rows) if row in specs and finite_R[row]]
        if not drawn:
            return
        ids = self._ops.draw(own_GV[drawn], max_G[drawn], [specs[rows[idx]] for idx in drawn])
        for idx, token_id in zip(drawn, ids, strict=True):
            token_ids[rows[idx]] = token_id

    def _logprobs(
        self,
        logits_RV: Float32,
        max_R: Float32,
        choices: Sequence[SampledChoice],
        token_ids: list[int],
        finite_R: Bools,
    ) -> dict[int, TokenLogprobs]:
        """Return log-probabilities under the unmodified logits, for rows that want them."""
        wanted = [
            row
            for row, choice in enumerate(choices)
            if choice.params.num_logprobs is not None and finite_R[row]
        ]
        result = {}
        for row in wanted:
            # Row by row: float64 copies of many rows of a large vocabulary would not be small.
            params = choices[row].params
            result[row] = self._row_logprobs(
                logits_RV[row],
                max_R[row],
                token_ids[row],
                params.num_logprobs or 0,
                params.logprob_token_ids,
            )
        return result

    def _row_logprobs(
        self,
        logits_V: Float32,
        max_logit: np.float32,
        token_id: int,
        count: int,
        more_ids: tuple[int, ...] = (),
    ) -> TokenLogprobs:
        log_sum = self._ops.log_sum_exp(logits_V[None], np.array([max_logit]))[0]
        ids = [token_id]
        if count:
            ids += self._ops.best(logits_V, count).tolist()
        ids += more_ids
        values = (logits_V[ids] - log_sum).astype(np.float32).tolist()
        return TokenLogprobs(chosen=values[0], top=tuple(zip(ids[1:], values[1:], strict=True)))

    def score(self, logits_RV: Tensor, next_ids_R: Int64, count: int) -> list[TokenLogprobs]:
        """Return what each row's distribution says of the token that follows it.

        Args:
            logits_RV: (R, V) float32; moved to the host if it is elsewhere.
            next_ids_R: the R tokens that follow.
            count: how many of the best to tell besides.

        Raises:
            NonFiniteLogitsError: a row is not finite.
        """
        scores = []
        for logits_V, token_id in zip(
            logits_RV.detach().cpu().numpy(), next_ids_R.tolist(), strict=True
        ):
            max_logit = logits_V[self._ops.argmax(logits_V[None])[0]]
            if not np.isfinite(max_logit):
                raise NonFiniteLogitsError(float(max_logit))
            found = self._row_logprobs(logits_V, max_logit, token_id, count)
            rank = int((logits_V > logits_V[token_id]).sum()) + 1
            scores.append(TokenLogprobs(found.chosen, found.top, rank))
        return scores


def _process(own_V: Float32, choice: SampledChoice) -> None:
    for processor in choice.active_processors():
        processor.apply(own_V, choice.prompt_ids, choice.output_ids)


def _special_rows(choices: Sequence[SampledChoice]) -> list[int]:
    """Return the rows for which the largest logit is not the answer, or not of these logits."""
    return [
        row
        for row, choice in enumerate(choices)
        if choice.params.temperature > 0.0 or choice.active_processors()
    ]


def _draw_specs(choices: Sequence[SampledChoice], rows: list[int]) -> dict[int, DrawSpec]:
    """Return what is drawn where, for those of `rows` that are not greedy."""
    drawn = [row for row in rows if choices[row].params.temperature > 0.0]
    if not drawn:
        return {}
    uniform_R = uniforms(
        [choices[row].params.seed for row in drawn],
        [choices[row].choice for row in drawn],
        [choices[row].num_outputs for row in drawn],
    )
    specs = {}
    for row, uniform in zip(drawn, uniform_R.tolist(), strict=True):
        params = choices[row].params
        specs[row] = DrawSpec(params.temperature, params.top_p, params.top_k, params.min_p, uniform)
    return specs
