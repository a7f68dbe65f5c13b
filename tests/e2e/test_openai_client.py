"""The official `openai` client against a running server, whatever its engine says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import RunningServer

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(client: openai.OpenAI, server: RunningServer) -> None:
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model


def test_a_streamed_completion_is_the_whole_one(
    client: openai.OpenAI, server: RunningServer
) -> None:
    whole = client.completions.create(model=server.model, prompt="Hello", max_tokens=12, seed=1)
    stream = client.completions.create(
        model=server.model, prompt="Hello", max_tokens=12, seed=1, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert 1 <= whole.usage.completion_tokens <= 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_a_streamed_chat_has_role_text_end_and_usage(
    client: openai.OpenAI, server: RunningServer
) -> None:
    whole = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_completion_tokens=10, seed=2
    )
    chunks = list(
        client.chat.completions.create(
            model=server.model,
            messages=MESSAGES,
            max_completion_tokens=10,
            seed=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *with_choice, usage_chunk = chunks
    deltas = [chunk.choices[0].delta for chunk in with_choice]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert with_choice[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage_chunk.choices == []
    assert usage_chunk.usage == whole.usage


def test_every_form_of_prompt_is_taken(client: openai.OpenAI, server: RunningServer) -> None:
    prompts: list[str | list[str] | list[int] | list[list[int]]] = [
        "a",
        ["a", "b"],
        [60, 61],
        [[60], [61, 62]],
    ]
    for prompt in prompts:
        reply = client.completions.create(model=server.model, prompt=prompt, max_tokens=2)
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        assert len(reply.choices) == (2 if several else 1)


def test_n_choices_stream_side_by_side(client: openai.OpenAI, server: RunningServer) -> None:
    whole = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=8, n=2, seed=3
    )
    texts = {0: "", 1: ""}
    ends = []
    for chunk in client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=8, n=2, seed=3, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert [texts[choice.index] for choice in whole.choices] == [
        choice.message.content for choice in whole.choices
    ]
    assert sorted(ends) == [0, 1]


def test_completion_logprobs_stand_beside_their_tokens(
    client: openai.OpenAI, server: RunningServer
) -> None:
    reply = client.completions.create(
        model=server.model, prompt="Hello", max_tokens=5, logprobs=2, temperature=0
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs)
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert value <= 0.0
        assert top[token] == value == max(top.values())


def test_chat_logprobs_hold_bytes_and_the_best(
    client: openai.OpenAI, server: RunningServer
) -> None:
    reply = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert reply.usage is not None
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == reply.usage.completion_tokens
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.bytes is not None
        if not entry.token.startswith("bytes:"):
            assert bytes(entry.bytes).decode() == entry.token


def test_ignore_eos_makes_exactly_max_tokens(client: openai.OpenAI, server: RunningServer) -> None:
    reply = client.completions.create(
        model=server.model, prompt="Hi", max_tokens=30, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (30, "length")


def test_echo_gives_the_prompt_back(client: openai.OpenAI, server: RunningServer) -> None:
    reply = client.completions.create(model=server.model, prompt="Hi you", max_tokens=2, echo=True)
    assert reply.choices[0].text.startswith("Hi you")


def test_a_wrong_value_is_a_bad_request_with_its_field(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="x", temperature=9)
    assert caught.value.param == "temperature"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="other", prompt="x")


async def test_the_async_client_streams_many_at_once(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

        async def one(seed: int) -> str:
            stream = await client.completions.create(
                model=server.model, prompt="Hello", max_tokens=8, seed=seed, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        together = await asyncio.gather(*(one(seed) for seed in range(8)))
        alone = [await one(seed) for seed in range(8)]
    assert together == alone
