"""A request as the engine sees it, and the events it answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a choice ended. `ERROR` and `CANCELLED` never reach a client as a finish_reason."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """How many tokens a block of thought may have, and how it is ended then."""

    max_tokens: int
    """Of the thought; 0: none."""
    begin: str
    """The tag that opens a block at the beginning of an output; empty: the prompt has opened it."""
    end: str
    """The tag that closes it."""
    end_ids: tuple[int, ...]
    """What is forced when the tokens are spent: ids whose text holds `end`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Validated at the API; the engine trusts it.

    `temperature` 0 is greedy. `top_k` 0 and `min_p` 0.0 are off. `seed` is always set: the API
    gives every request without one a random seed, kept for replay.
    `num_logprobs` None: no logprobs; 0: the chosen token's only; n: the n best too.
    """

    max_tokens: int
    seed: int
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end the choice; holds the model's eos ids unless `ignore_eos`."""
    num_logprobs: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of (token id, what is added to its logit); an id appears once."""
    allowed_token_ids: frozenset[int] | None = None
    """None: all. Otherwise not empty."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids that may not appear in the output; none of them empty."""
    logprob_token_ids: tuple[int, ...] = ()
    """Ids whose log-probabilities are told too, where `num_logprobs` is set."""
    grammar: str = ""
    """What the output is held to, in llguidance's form; empty: nothing. `stop_token_ids` holds the
    eos ids then, and `min_tokens` is 0."""
    thought: ThoughtLimit | None = None
    """None: thought is bounded by `max_tokens` alone."""
    num_prompt_logprobs: int | None = None
    """As `num_logprobs`, for each prompt token but the first. `max_tokens` 0 then only scores."""
    routed_experts_from: int | None = None
    """Tell which experts the rows from this position on went to; None: do not."""

    @property
    def only_scores(self) -> bool:
        """Whether nothing is generated and the prompt's log-probabilities are the answer."""
        return self.max_tokens == 0 and self.num_prompt_logprobs is not None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One choice of one client request: the unit that is scheduled, cancelled and replayed.

    `emitted_ids` are tokens that an earlier attempt has already emitted: they are computed as part
    of the context and never emitted again; positions for sampling count on from them.
    """

    request_id: str
    choice: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    attempt: int = 0
    emitted_ids: tuple[int, ...] = ()
    priority: int = 0
    """Lower goes first."""
    cache_salt: bytes = b""
    """Prompts share cached prefixes only under the same salt."""
    session_id: str = ""
    """Requests of one session prefer one rank; empty: none."""
    trace: str = ""
    """The W3C traceparent under which it is traced; empty: it is not."""

    @property
    def key(self) -> tuple[str, int]:
        """What names this choice in the engine."""
        return (self.request_id, self.choice)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (fp32, of the unmodified distribution) at one position."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """Pairs of (token id, log-probability), best first; ids asked for by name come last."""
    rank: int = 0
    """The chosen token's place, 1 for the best; 0 where it was not counted."""


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """Experts that rows went to: `ids` is (rows, num_layers, top_k), uint16, little-endian."""

    num_layers: int
    top_k: int
    ids: bytes


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one choice, or its end, or both.

    `index` counts emitted tokens of the choice from 0 over all attempts. The last event of a
    choice has `finish` set, and exactly one event has. `stop_token_id` is the id that ended it.
    """

    request_id: str
    choice: int
    attempt: int
    index: int
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    stop_token_id: int | None = None
    error: Exception | None = None
    num_cached_tokens: int = 0
    """Context tokens of this attempt that the prefix cache had; the same on all its events."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """For prompt tokens 1, 2, … when asked for; on the choice's first event, whatever attempt."""
    routed_experts: RoutedExperts | None = None
    """Of the rows computed since the choice's event before, whatever attempt, when asked for."""


@dataclass(slots=True)
class EngineStats:
    """A snapshot for `/metrics`, routing and autoscaling."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    kv_usage: float = 0.0
    """Share of the fuller KV pool in use, 0 … 1."""
    num_steps: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    last_step_at_s: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[int]] = field(default_factory=dict)
    """Histograms by the names in `StepWatch.TIMES`; see `cluster.histogram`."""
    by_shard: dict[str, list[int]] = field(default_factory=dict)
    """By shard number, what `cluster.dispatch_times.ShardTimes.of` reads."""
