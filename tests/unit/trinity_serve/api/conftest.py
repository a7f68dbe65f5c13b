"""A tokenizer, a model service and an application over a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.model.generation_config import GenerationDefaults

DEFAULTS = GenerationDefaults(temperature=0.8, top_p=0.7, top_k=5, eos_token_ids=(3,))


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tiny_checkpoint)


@pytest.fixture(scope="session")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    service = ModelService.from_folder(
        tiny_checkpoint, name="tiny", defaults=DEFAULTS, max_model_len=200, vocab_size=512
    )
    yield service
    service.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def limits() -> ApiLimits:
    return ApiLimits(
        max_open_requests=8,
        max_body_bytes=20_000,
        max_prompts=4,
        max_n=4,
        max_choices=8,
        max_messages=10,
        max_stop_strings=3,
        max_stop_chars=10,
        max_stop_token_ids=4,
        max_logprobs=5,
        max_prompt_logprobs=200,
        max_bad_word_chars=10,
        max_grammar_chars=8000,
        probe_timeout_s=0.2,
    )


@pytest.fixture
async def http(
    engine: ScriptedEngine, service: ModelService, limits: ApiLimits
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application without a socket."""
    transport = httpx.ASGITransport(create_app(engine, service, limits), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
