"""The application called without a socket: forms, refusals, limits."""

from __future__ import annotations

import asyncio
import logging
from itertools import chain
from typing import cast

import httpx
import orjson
import pytest

from cluster.errors import CoverageLostError, NotReadyError, OverloadedError, ShardFailedError
from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.service import ModelService
from trinity_serve.engine.request import EngineStats, SamplingParams

Fields = dict[str, object]
HELLO: Fields = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
CHAT: Fields = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def _post(http: httpx.AsyncClient, path: str, body: Fields) -> httpx.Response:
    return await http.post(path, content=orjson.dumps(body), headers=JSON)


JSON = {"content-type": "application/json"}


async def _refusal(
    http: httpx.AsyncClient, body: Fields, path: str = "/v1/completions", status: int = 400
) -> Fields:
    response = await _post(http, path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return cast(Fields, error)


def _events(response: httpx.Response) -> list[Fields]:
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def _choice(event: Fields) -> Fields:
    return cast(list[Fields], event["choices"])[0]


async def _params(
    http: httpx.AsyncClient, engine: ScriptedEngine, **fields: object
) -> SamplingParams:
    response = await _post(http, "/v1/completions", HELLO | fields)
    assert response.status_code == 200, response.text
    return engine.requests[-1].params


class TestSampling:
    async def test_a_request_that_says_nothing_gets_the_checkpoints_defaults(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        params = await _params(http, engine)
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.8, 0.7, 5, 0.0)
        assert params.stop_token_ids == {3}

    async def test_what_a_request_says_counts(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        params = await _params(
            http,
            engine,
            temperature=0,
            top_p=1,
            top_k=-1,
            min_p=0.25,
            seed=-7,
            min_tokens=2,
            stop_token_ids=[70, 71],
            ignore_eos=True,
            frequency_penalty=-1.5,
            presence_penalty=0.5,
            repetition_penalty=1.25,
            logit_bias={"70": -100, "9": 1.5},
            allowed_token_ids=[9, 70, 71],
        )
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 1, 0, 0.25)
        assert (params.seed, params.min_tokens) == (-7, 2)
        assert params.ignore_eos
        assert params.stop_token_ids == {70, 71}
        assert (params.frequency_penalty, params.presence_penalty) == (-1.5, 0.5)
        assert params.repetition_penalty == 1.25
        assert params.logit_bias == ((9, 1.5), (70, -100.0))
        assert params.allowed_token_ids == frozenset({9, 70, 71})

    async def test_requests_without_a_seed_get_different_ones(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        first, second = await _params(http, engine), await _params(http, engine)
        assert first.seed != second.seed

    async def test_each_prompts_choices_count_from_zero(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        body = HELLO | {"prompt": ["a", "b"], "n": 2, "seed": 5}
        response = await _post(http, "/v1/completions", body)
        assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
        keys = sorted(request.key for request in engine.requests)
        assert [choice for _, choice in keys] == [0, 1, 0, 1]
        assert len({name for name, _ in keys}) == 2

    async def test_the_same_request_id_twice_makes_two_engine_requests(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        for _ in range(2):
            await http.post("/v1/completions", json=HELLO, headers={"x-request-id": "mine"})
        assert engine.requests[0].key != engine.requests[1].key
        assert all("mine" in request.request_id for request in engine.requests)


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [([60, 61], [(60, 61)]), ([[60], [61, 62]], [(60,), (61, 62)])],
    )
    async def test_ids_go_to_the_engine_as_they_are(
        self,
        http: httpx.AsyncClient,
        engine: ScriptedEngine,
        prompt: object,
        expected: list[tuple[int, ...]],
    ) -> None:
        await _post(http, "/v1/completions", HELLO | {"prompt": prompt})
        assert [request.prompt_ids for request in engine.requests] == expected

    async def test_a_long_text_is_encoded_as_a_short_one(
        self, http: httpx.AsyncClient, service: ModelService
    ) -> None:
        text = "long text " * 500
        response = await _post(http, "/tokenize", {"prompt": text})
        assert response.json()["tokens"] == service.tokenizer.encode(text, add_special_tokens=True)

    async def test_only_the_last_tokens_are_kept_when_asked(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        body = HELLO | {"prompt": [60, 61, 62], "truncate_prompt_tokens": 2}
        await _post(http, "/v1/completions", body)
        assert engine.requests[0].prompt_ids == (61, 62)

    async def test_a_completion_makes_16_tokens_by_default_and_less_where_less_fits(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        await _post(http, "/v1/completions", {"prompt": [60]})
        await _post(http, "/v1/completions", {"prompt": [60] * 190})
        assert [request.params.max_tokens for request in engine.requests] == [16, 10]

    async def test_a_chat_may_use_the_rest_of_the_context(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        await _post(http, "/v1/chat/completions", CHAT)
        request = engine.requests[0]
        assert request.params.max_tokens == 200 - len(request.prompt_ids)

    async def test_max_completion_tokens_is_the_newer_name(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        body = CHAT | {"max_tokens": 9, "max_completion_tokens": 3}
        await _post(http, "/v1/chat/completions", body)
        assert engine.requests[0].params.max_tokens == 3

    async def test_parts_of_text_are_joined_and_a_tool_history_is_rendered(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
        messages: list[Fields] = [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]
        await _post(http, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        ids = list(engine.requests[0].prompt_ids)
        text = service.tokenizer.decode(ids, skip_special_tokens=False)
        assert "user\na\nb<|im_end|>" in text
        assert '{"name": "f", "arguments": {"x": 1}}' in text
        assert "<tool_response>\n2\n</tool_response>" in text

    async def test_the_last_message_is_continued_when_asked(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so fa"}]
        body = {"messages": messages, "continue_final_message": True, "max_tokens": 1}
        await _post(http, "/v1/chat/completions", body | {"add_generation_prompt": False})
        ids = list(engine.requests[0].prompt_ids)
        assert service.tokenizer.decode(ids, skip_special_tokens=False).endswith("\nso fa")

    async def test_template_variables_reach_the_template(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        body = CHAT | {"chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 1}
        await _post(http, "/v1/chat/completions", body)
        ids = list(engine.requests[0].prompt_ids)
        assert service.tokenizer.decode(ids, skip_special_tokens=False).endswith("<think>\n")


class TestReplies:
    async def test_a_stream_and_a_whole_reply_hold_the_same(self, http: httpx.AsyncClient) -> None:
        body = HELLO | {"seed": 1, "max_tokens": 20}
        whole = (await _post(http, "/v1/completions", body)).json()["choices"][0]
        events = _events(await _post(http, "/v1/completions", body | {"stream": True}))
        assert "".join(str(_choice(event)["text"]) for event in events) == whole["text"]
        assert _choice(events[-1])["finish_reason"] == whole["finish_reason"] == "length"
        assert all(_choice(event)["finish_reason"] is None for event in events[:-1])

    async def test_usage_comes_last_with_null_before_it(self, http: httpx.AsyncClient) -> None:
        body = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
        *events, last = _events(await _post(http, "/v1/completions", body))
        assert all(event["usage"] is None for event in events)
        assert last["choices"] == []
        assert cast(Fields, last["usage"])["completion_tokens"] == 4

    async def test_usage_may_come_with_every_chunk(self, http: httpx.AsyncClient) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = CHAT | {"max_tokens": 3, "stream": True, "stream_options": options}
        _, *events = _events(await _post(http, "/v1/chat/completions", body))
        counts = [cast(Fields, event["usage"])["completion_tokens"] for event in events]
        assert counts == sorted(cast(list[int], counts))
        assert counts[-1] == 3

    async def test_cached_tokens_are_told_once_per_prompt(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.num_cached_tokens = 2
        body = HELLO | {"prompt": [[60, 61, 62], [60]], "n": 2}
        usage = (await _post(http, "/v1/completions", body)).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 16)

    async def test_echo_without_a_token_answers_the_prompt_and_asks_no_engine(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        body = HELLO | {"echo": True, "max_tokens": 0}
        choice = (await _post(http, "/v1/completions", body)).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("hello", "length")
        events = _events(await _post(http, "/v1/completions", body | {"stream": True}))
        assert "".join(str(_choice(event)["text"]) for event in events) == "hello"
        assert engine.requests == []

    async def test_token_ids_are_returned_when_asked(self, http: httpx.AsyncClient) -> None:
        body = {"prompt": [60, 61], "max_tokens": 3, "return_token_ids": True}
        choice = (await _post(http, "/v1/completions", body)).json()["choices"][0]
        assert (choice["prompt_token_ids"], choice["token_ids"]) == ([60, 61], [60, 61, 60])
        events = _events(await _post(http, "/v1/completions", body | {"stream": True}))
        assert _choice(events[0])["prompt_token_ids"] == [60, 61]
        streamed = [cast(list[int], _choice(event)["token_ids"]) for event in events]
        assert list(chain.from_iterable(streamed)) == [60, 61, 60]

    async def test_completion_logprobs_hold_the_chosen_among_the_best(
        self, http: httpx.AsyncClient, service: ModelService
    ) -> None:
        body = {"prompt": [60, 61], "max_tokens": 2, "logprobs": 2}
        logprobs = (await _post(http, "/v1/completions", body)).json()["choices"][0]["logprobs"]
        names = [service.tokenizer.token_text(token) for token in (60, 61, 62)]
        assert logprobs["tokens"] == names[:2]
        assert logprobs["token_logprobs"] == [-0.5, -0.5]
        assert logprobs["top_logprobs"][0] == {names[0]: -0.5, names[1]: -1.5}
        assert logprobs["text_offset"] == [0, len(names[0])]

    async def test_echo_with_logprobs_begins_with_those_of_the_prompt(
        self, http: httpx.AsyncClient, service: ModelService
    ) -> None:
        body: Fields = {"prompt": [60, 61, 62], "max_tokens": 1, "logprobs": 1, "echo": True}
        choice = (await _post(http, "/v1/completions", body)).json()["choices"][0]
        names = [service.tokenizer.token_text(token) for token in (60, 61, 62, 63)]
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == [*names[:3], names[0]]
        assert logprobs["token_logprobs"] == [None, -1.0, -2.0, -0.5]
        assert logprobs["top_logprobs"][:2] == [None, {names[1]: -1.0, names[2]: -0.5}]
        assert logprobs["text_offset"] == [0, 1, 2, 3]
        assert choice["text"] == "".join([*names[:3], names[0]])

    async def test_a_stream_echoes_the_same_logprobs_for_every_choice(
        self, http: httpx.AsyncClient
    ) -> None:
        body = {"prompt": [[60, 61, 62], [63, 64]], "max_tokens": 2, "logprobs": 1, "echo": True}
        whole = (await _post(http, "/v1/completions", body | {"n": 2})).json()["choices"]
        events = _events(await _post(http, "/v1/completions", body | {"n": 2, "stream": True}))
        for choice in whole:
            parts = [_choice(event) for event in events]
            own = [part for part in parts if part["index"] == choice["index"]]
            joined = [cast(Fields, part["logprobs"]) for part in own]
            for name, values in choice["logprobs"].items():
                assert list(chain.from_iterable(cast(list[int], p[name]) for p in joined)) == values
            assert "".join(str(part["text"]) for part in own) == choice["text"]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_scoring_makes_no_token(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
    ) -> None:
        body: Fields = {"prompt": [60, 61], "max_tokens": 0, "logprobs": 1, "echo": True}
        response = await _post(http, "/v1/completions", body | {"stream": stream})
        choice = _choice(_events(response)[0] if stream else response.json())
        assert cast(Fields, choice["logprobs"])["token_logprobs"] == [None, -1.0]
        assert (engine.requests[0].params.max_tokens, engine.num_emitted) == (0, 1)

    async def test_prompt_logprobs_are_told_with_rank_and_text(
        self, http: httpx.AsyncClient, service: ModelService
    ) -> None:
        body: Fields = {"prompt": [60, 61], "max_tokens": 1, "prompt_logprobs": 1}
        choice = (await _post(http, "/v1/completions", body)).json()["choices"][0]
        names = [service.tokenizer.token_text(token) for token in (61, 62)]
        assert choice["prompt_logprobs"] == [
            None,
            {
                "61": {"logprob": -1.0, "rank": 2, "decoded_token": names[0]},
                "62": {"logprob": -0.5, "rank": 1, "decoded_token": names[1]},
            },
        ]
        reply = await _post(http, "/v1/chat/completions", CHAT | {"prompt_logprobs": 0})
        assert reply.json()["prompt_logprobs"][0] is None

    async def test_chosen_tokens_and_bad_words_reach_the_engine(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        fields = {"bad_words": ["Hi"], "logprobs": 0, "logprob_token_ids": [9, 7, 9]}
        params = await _params(http, engine, **fields)
        assert params.logprob_token_ids == (9, 7)
        forms = [service.tokenizer.encode(t, add_special_tokens=False) for t in ("Hi", " Hi")]
        assert set(params.bad_words) == set(map(tuple, forms))

    @pytest.mark.parametrize("extra", [{}, {"logprobs": 1, "return_token_ids": True, "echo": True}])
    async def test_larger_chunks_add_up_to_the_same(
        self, http: httpx.AsyncClient, extra: Fields
    ) -> None:
        body = HELLO | extra | {"max_tokens": 20, "n": 2, "seed": 1}
        whole = (await _post(http, "/v1/completions", body)).json()["choices"]
        paced = body | {"stream": True, "stream_interval": 8}
        events = [_choice(event) for event in _events(await _post(http, "/v1/completions", paced))]
        for choice in whole:
            own = [event for event in events if event["index"] == choice["index"]]
            assert "".join(str(event["text"]) for event in own) == choice["text"]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
            # The prompt if echoed, the first token, then eight, eight and the last three.
            assert len(own) <= 4 + ("echo" in extra)
            if extra:
                tokens = [cast(list[int], event["token_ids"]) for event in own]
                assert list(chain.from_iterable(tokens)) == choice["token_ids"]
                logprobs = [cast(Fields, event["logprobs"]) for event in own]
                values = [cast(list[float], part["token_logprobs"]) for part in logprobs]
                assert list(chain.from_iterable(values)) == choice["logprobs"]["token_logprobs"]

    async def test_chat_takes_larger_chunks_too(self, http: httpx.AsyncClient) -> None:
        body = CHAT | {"max_tokens": 20}
        whole = (await _post(http, "/v1/chat/completions", body)).json()["choices"][0]
        paced = body | {"stream": True, "stream_interval": 10}
        deltas = [
            cast(Fields, _choice(event)["delta"])
            for event in _events(await _post(http, "/v1/chat/completions", paced))
        ]
        assert (
            "".join(str(delta.get("content", "")) for delta in deltas)
            == (whole["message"]["content"])
        )
        assert len(deltas) <= 5

    async def test_a_request_may_name_itself_and_its_session(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        body = HELLO | {"request_id": "mine", "session_id": "ours"}
        reply = (await _post(http, "/v1/completions", body)).json()
        assert "mine" in reply["id"]
        await http.post("/v1/completions", json=HELLO, headers={"x-session-id": "theirs"})
        assert [request.session_id for request in engine.requests] == ["ours", "theirs"]

    async def test_tokens_may_be_named_by_id(self, http: httpx.AsyncClient) -> None:
        body = {"prompt": [60], "max_tokens": 1, "logprobs": 0, "return_tokens_as_token_ids": True}
        logprobs = (await _post(http, "/v1/completions", body)).json()["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["token_id:60"]

    async def test_the_clients_request_id_comes_back_when_it_is_sane(
        self, http: httpx.AsyncClient
    ) -> None:
        kept = await http.get("/health", headers={"x-request-id": "abc-1"})
        made = await http.get("/health", headers={"x-request-id": "no spaces please"})
        assert kept.headers["x-request-id"] == "abc-1"
        assert len(made.headers["x-request-id"]) == 32


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param", "words"),
        [
            ({"max_tokens": -1}, "max_tokens", "= -1 is not allowed: it should be greater"),
            ({"max_tokens": "5"}, "max_tokens", "'5'"),
            ({"max_tokens": True}, "max_tokens", "True"),
            ({"max_tokens": 0}, "max_tokens", "echo"),
            ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
            ({"top_p": 0}, "top_p", "greater than 0"),
            # As float32 it would be 0, which nothing can be divided by.
            ({"repetition_penalty": 5e-324}, "repetition_penalty", "greater than or equal to 0.01"),
            ({"n": 5}, "n", "n = 5 is above the limit; allowed: 1 to 4"),
            ({"n": 3, "prompt": ["a", "b", "c"]}, "n", "9 choices; allowed: 8"),
            ({"prompt": ["a"] * 5}, "prompt", "5 prompts; allowed: 4"),
            ({"prompt": []}, "prompt", "a string, a list of strings, token ids"),
            ({"prompt": [[1], "a"]}, "prompt", "a string, a list of strings, token ids"),
            ({"prompt": ""}, "prompt", "empty"),
            ({"prompt": [1, 512]}, "prompt", "id 512; allowed: 0 to 511"),
            ({"prompt": None}, "prompt", "must be"),
            ({"stop": ""}, "stop", "empty string"),
            ({"stop": ["a", "b", "c", "d"]}, "stop", "4 strings; allowed: 3"),
            ({"stop": "x" * 11}, "stop", "11 characters; allowed: 10"),
            ({"stop": [1]}, "stop", "string or a list of strings"),
            ({"stop_token_ids": [-1]}, "stop_token_ids", "id -1"),
            ({"stop_token_ids": [1] * 5}, "stop_token_ids", "5 ids; allowed: 4"),
            ({"min_tokens": 5}, "min_tokens", "min_tokens = 5 is above max_tokens = 4"),
            ({"logprobs": 6}, "logprobs", "allowed: 0 to 5"),
            ({"prompt_logprobs": 6}, "prompt_logprobs", "allowed: 0 to 5"),
            ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "without stream"),
            ({"prompt": [60] * 60, "prompt_logprobs": 3}, "prompt_logprobs", "240 values"),
            ({"max_tokens": 0}, "max_tokens", "with echo or prompt_logprobs"),
            ({"bad_words": [""]}, "bad_words.0", "at least 1 character"),
            ({"bad_words": ["x" * 20]}, "bad_words", "up to 20 characters"),
            ({"logprob_token_ids": [7]}, "logprob_token_ids", "needs logprobs"),
            ({"logprobs": 0, "logprob_token_ids": [512]}, "logprob_token_ids", "id 512"),
            ({"seed": 2**63}, "seed", "less than or equal"),
            ({"logit_bias": {"x": 1}}, "logit_bias", "token ids in digits"),
            ({"logit_bias": {"512": 1}}, "logit_bias", "id 512"),
            ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1"),
            ({"stream_options": {}}, "stream_options", "stream = true"),
            ({"best_of": 2}, "best_of", "not supported"),
            ({"suffix": "x"}, "suffix", "fill in the middle"),
        ],
    )
    async def test_a_field_is_refused_by_name_with_value_and_what_is_allowed(
        self, http: httpx.AsyncClient, fields: Fields, param: str, words: str
    ) -> None:
        error = await _refusal(http, HELLO | fields)
        assert error["param"] == param
        assert words in str(error["message"])
        assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"messages": []}, "at least 1"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "'system', 'developer'"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                "part 0 is 'image_url'",
            ),
            ({"messages": [{"role": "user", "content": "x"}] * 11}, "holds 11; allowed: 10"),
            ({"chat_template": "{{ 1 }}"}, "never taken from a request"),
            ({"chat_template_kwargs": {"messages": []}}, "may not set messages"),
            ({"tools": [{"type": "function"}]}, "tools.0.function is required"),
            ({"tool_choice": "required"}, "tools is empty"),
            ({"functions": [{"name": "f"}]}, "use tools and tool_choice"),
            ({"reasoning_effort": "high"}, "knows no efforts"),
            ({"documents": [{"text": "x"}]}, "has no place for them"),
            ({"top_logprobs": 2}, "needs logprobs = true"),
            ({"max_completion_tokens": 0}, "1 or more"),
            ({"continue_final_message": True, "add_generation_prompt": True}, "exclude"),
        ],
    )
    async def test_a_chat_field_is_refused_with_the_reason(
        self, http: httpx.AsyncClient, fields: Fields, words: str
    ) -> None:
        error = await _refusal(http, CHAT | fields, "/v1/chat/completions")
        assert words in str(error["message"])

    async def test_values_that_ask_for_nothing_are_let_through(
        self, http: httpx.AsyncClient
    ) -> None:
        neutral = {
            "tools": None,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "response_format": {"type": "text"},
            "suffix": "",
            "best_of": 1,
            "store": False,
            "user": "me",
            "metadata": {"a": "b"},
        }
        response = await _post(http, "/v1/completions", HELLO | neutral)
        assert response.status_code == 200, response.text

    async def test_an_unknown_name_is_ignored_with_one_log_line(
        self, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                response = await _post(http, "/v1/completions", HELLO | {"temprature": 1})
                assert response.status_code == 200
        assert [record.getMessage() for record in caplog.records] == [
            "Ignoring unknown request field 'temprature'."
        ]

    async def test_a_context_that_is_too_long_gives_both_numbers(
        self, http: httpx.AsyncClient
    ) -> None:
        error = await _refusal(http, {"prompt": [60] * 150, "max_tokens": 51})
        assert error["code"] == "context_length_exceeded"
        assert "150 tokens and 51 more" in str(error["message"])
        assert "200 tokens" in str(error["message"])
        full = await _refusal(http, {"prompt": [60] * 200})
        assert full["code"] == "context_length_exceeded"

    async def test_another_model_is_not_found(self, http: httpx.AsyncClient) -> None:
        error = await _refusal(http, HELLO | {"model": "gpt"}, status=404)
        assert (error["code"], error["type"]) == ("model_not_found", "not_found_error")
        assert (await http.get("/v1/models/gpt")).status_code == 404

    async def test_a_missing_field_is_named(self, http: httpx.AsyncClient) -> None:
        error = await _refusal(http, {"model": "tiny"})
        assert (error["param"], error["message"]) == ("prompt", "prompt is required and missing.")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b'"x"',
            b"\xff",
            b'{"prompt": NaN}',
            b'{"prompt": "\\ud800"}',
            b"[" * 5000,
            b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        ],
    )
    async def test_a_body_that_is_not_a_json_object_is_refused(
        self, http: httpx.AsyncClient, body: bytes
    ) -> None:
        response = await http.post("/v1/completions", content=body, headers=JSON)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "invalid_parameter"

    async def test_a_body_of_another_type_is_told_the_right_one(
        self, http: httpx.AsyncClient
    ) -> None:
        response = await http.post("/v1/completions", content=b'{"prompt": "x"}')
        assert response.status_code == 400
        assert "Content-Type: application/json" in response.json()["error"]["message"]

    async def test_a_body_past_the_limit_is_refused_before_it_is_read(
        self, http: httpx.AsyncClient
    ) -> None:
        error = await _refusal(http, {"prompt": "x" * 20_001}, status=413)
        assert "limit is 20000" in str(error["message"])

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405)],
    )
    async def test_wrong_routes_and_methods_are_error_objects(
        self, http: httpx.AsyncClient, method: str, path: str, status: int
    ) -> None:
        response = await http.request(method, path)
        assert response.status_code == status
        assert path in response.json()["error"]["message"]


class TestEngineErrors:
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_full_queue_is_429_with_retry_after(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
    ) -> None:
        engine.refusal = OverloadedError("waiting queue", 4, 1.5)
        response = await _post(http, "/v1/completions", HELLO | {"stream": stream})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        assert response.json()["error"]["type"] == "rate_limit_error"

    async def test_an_error_before_the_first_token_is_a_status(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.failure, engine.fail_after = CoverageLostError(1, 4, 30.0), 0
        response = await _post(http, "/v1/completions", HELLO | {"stream": True})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "30"

    async def test_an_error_later_is_an_event_and_the_end(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.failure, engine.fail_after = ShardFailedError(2, "it broke"), 2
        response = await _post(http, "/v1/completions", HELLO | {"stream": True})
        assert response.status_code == 200
        error = cast(Fields, _events(response)[-1]["error"])
        assert (error["message"], error["code"]) == ("Shard 2 failed: it broke.", "shard_failed")

    async def test_a_whole_reply_that_fails_late_is_a_status_still(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.failure, engine.fail_after = ShardFailedError(2, "it broke"), 2
        assert (await _post(http, "/v1/completions", HELLO)).status_code == 500

    async def test_an_error_that_is_not_ours_tells_no_internals(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.refusal = RuntimeError("secret")
        response = await _post(http, "/v1/completions", HELLO)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "secret" not in response.text


class TestBounds:
    @pytest.fixture
    def limits(self) -> ApiLimits:
        return ApiLimits(max_open_requests=2, request_timeout_s=0.3)

    async def test_one_request_more_than_may_be_open_is_429_at_once(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.stall_after = 0
        open_ones = [asyncio.create_task(_post(http, "/v1/completions", HELLO)) for _ in range(2)]
        async with asyncio.timeout(5.0):
            while len(engine.open) < 2:
                await asyncio.sleep(0)
        error = await _refusal(http, HELLO, status=429)
        assert error["message"] == "The ingress is full (2). Try again in 1 s."
        for response in await asyncio.gather(*open_ones):
            assert response.status_code == 504

    async def test_a_request_past_its_deadline_is_504_and_freed(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.stall_after = 2
        error = await _refusal(http, HELLO, status=504)
        assert error["message"] == "The request did not finish within 0.3 s."
        assert not engine.open

    async def test_a_stream_past_its_deadline_ends_with_an_error_event(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        engine.stall_after = 2
        events = _events(await _post(http, "/v1/completions", HELLO | {"stream": True}))
        assert cast(Fields, events[-1]["error"])["code"] == "deadline_exceeded"
        assert not engine.open


class TestStatus:
    async def test_health_asks_nobody_and_ready_asks_the_engine(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        assert (await http.get("/ready")).status_code == 200
        engine.not_ready = NotReadyError("shard 3 of 8, 61 % loaded", 3.0)
        assert (await http.get("/health")).status_code == 200
        response = await http.get("/ready")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "3"
        assert "shard 3 of 8, 61 % loaded" in response.json()["error"]["message"]

    async def test_models_lists_the_one_served(self, http: httpx.AsyncClient) -> None:
        (model,) = (await http.get("/v1/models")).json()["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 200)
        assert (await http.get("/v1/models/tiny")).json() == model

    async def test_metrics_have_the_dashboards_names(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        prefix = {"prefix_cache_queries": 96.0, "prefix_cache_hits": 64.0}
        engine.numbers = EngineStats(num_running=3, num_waiting=2, kv_usage=0.5, extra=prefix)
        await _post(http, "/v1/completions", HELLO)
        lines = (await http.get("/metrics")).text.splitlines()
        label = '{model_name="tiny"}'
        assert f"vllm_num_requests_running{label} 3.0" in lines
        assert f"vllm_num_requests_waiting{label} 2.0" in lines
        assert f"vllm_kv_cache_usage_perc{label} 0.5" in lines
        assert f"vllm_prefix_cache_queries_total{label} 96.0" in lines
        assert f"vllm_prefix_cache_hits_total{label} 64.0" in lines
        assert f"vllm_time_to_first_token_seconds_count{label} 1.0" in lines
        assert f"vllm_request_generation_tokens_sum{label} 4.0" in lines
        success = 'vllm_request_success_total{finished_reason="length",model_name="tiny"} 1.0'
        assert success in lines
        assert f"trinity_open_requests{label} 0.0" in lines

    async def test_the_openapi_document_names_the_routes(self, http: httpx.AsyncClient) -> None:
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert {"/v1/completions", "/v1/chat/completions", "/tokenize"} <= paths.keys()


class TestTokenization:
    async def test_text_becomes_ids_and_back(self, http: httpx.AsyncClient) -> None:
        body: Fields = {"model": "tiny", "prompt": "hi <|im_end|>", "return_token_strs": True}
        tokens = (await _post(http, "/tokenize", body)).json()
        assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
        assert (tokens["tokens"][-1], tokens["max_model_len"]) == (3, 200)
        back = await _post(http, "/detokenize", {"tokens": tokens["tokens"]})
        assert back.json() == {"prompt": "hi <|im_end|>"}

    async def test_messages_become_what_a_chat_sends(
        self, http: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        tokens = (await _post(http, "/tokenize", {"messages": CHAT["messages"]})).json()["tokens"]
        await _post(http, "/v1/chat/completions", CHAT | {"max_tokens": 1})
        assert list(engine.requests[0].prompt_ids) == tokens

    async def test_clients_may_render_for_themselves(
        self, http: httpx.AsyncClient, service: ModelService
    ) -> None:
        info = (await http.get("/tokenizer_info")).json()
        assert (info["eos_token"], info["bos_token"]) == ("<|im_end|>", "<|begin_of_text|>")
        assert service.template is not None
        assert info["chat_template"] == service.template.source

    async def test_neither_or_both_are_refused(self, http: httpx.AsyncClient) -> None:
        assert "Exactly one" in str((await _refusal(http, {}, "/tokenize"))["message"])
