"""A fixed set of mixed requests: every way of generating whose output a failure could change.

All of them are seeded and bounded, so that the same request always has the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import orjson

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

Fields = dict[str, object]


@dataclass(frozen=True)
class ChaosRequest:
    """One request: the same name is the same body, and has the same answer."""

    name: str
    path: str
    body: bytes

    @property
    def streams(self) -> bool:
        """Whether tokens come as they are made."""
        return bool(orjson.loads(self.body)["stream"])


def _sampled(random: Random) -> Fields:
    return {"temperature": random.choice([0.6, 0.9, 1.2]), "top_p": 0.95, "top_k": 50}


def _chat(random: Random) -> Fields:
    words = random.choices(["count", "the", "open", "doors", "of", "a", "house", "and"], k=12)
    return {"messages": [{"role": "user", "content": " ".join(words)}]}


_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "counts": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    },
    "required": ["name", "counts"],
    "additionalProperties": False,
}

KINDS: Mapping[str, Callable[[Random], Fields]] = {
    "greedy": lambda random: {"temperature": 0.0},
    "seeded": _sampled,
    "choices": lambda random: {**_sampled(random), "n": 3},
    "penalties": lambda random: {
        **_sampled(random),
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
    },
    "stop": lambda random: {**_sampled(random), "stop": ["on", "er ", "th"], "ignore_eos": False},
    "whole": lambda random: {**_sampled(random), "stream": False},
    "chat": lambda random: {**_sampled(random), **_chat(random)},
    "schema": lambda random: {
        **_sampled(random),
        **_chat(random),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": _SCHEMA, "strict": True},
        },
        "ignore_eos": False,
    },
}
"""By name: the fields that make a kind of request what it is."""


@dataclass(frozen=True)
class Sizes:
    """How long prompts and outputs are, in tokens."""

    short_prompt: tuple[int, int] = (4, 32)
    long_prompt: tuple[int, int] = (200, 600)
    long_share: float = 0.25
    output: tuple[int, int] = (16, 96)
    vocab_size: int = 4096
    first_id: int = 13


def mixed_requests(
    model: str,
    count: int,
    seed: int,
    kinds: Sequence[str] = tuple(KINDS),
    sizes: Sizes | None = None,
) -> list[ChaosRequest]:
    """Return `count` requests, the kinds in turn; the same arguments give the same requests."""
    random, sizes = Random(seed), sizes or Sizes()
    return [
        _request(model, number, kinds[number % len(kinds)], random, sizes)
        for number in range(count)
    ]


def _request(model: str, number: int, kind: str, random: Random, sizes: Sizes) -> ChaosRequest:
    fields: Fields = {
        "model": model,
        "max_tokens": random.randint(*sizes.output),
        "seed": random.getrandbits(31),
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
        **KINDS[kind](random),
    }
    if "messages" in fields:
        fields |= {"logprobs": True, "top_logprobs": 2}
        return ChaosRequest(f"{kind}-{number}", CHAT, orjson.dumps(fields))
    is_long = random.random() < sizes.long_share
    length = random.randint(*(sizes.long_prompt if is_long else sizes.short_prompt))
    fields["prompt"] = [random.randrange(sizes.first_id, sizes.vocab_size) for _ in range(length)]
    fields["logprobs"] = 2
    return ChaosRequest(f"{kind}-{number}", COMPLETIONS, orjson.dumps(fields))


def endless_request(model: str, max_tokens: int = 900) -> ChaosRequest:
    """Return one that streams for long, with much to say about each token."""
    fields: Fields = {
        "model": model,
        "prompt": list(range(13, 29)),
        "max_tokens": max_tokens,
        "seed": 1,
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 5,
    }
    return ChaosRequest("endless", COMPLETIONS, orjson.dumps(fields))
