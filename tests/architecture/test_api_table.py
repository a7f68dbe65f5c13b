"""docs/api.md says of every parameter what the code does with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from anthropic.types import message_count_tokens_params as counting
from anthropic.types import message_create_params as messages
from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from pydantic import BaseModel

from tests.architecture.source import ROOT
from trinity_serve.api.anthropic.schema import MESSAGES_FIELDS, MessagesBody
from trinity_serve.api.fields import NOT_BUILT, WITHOUT_EFFECT, FieldTable
from trinity_serve.api.responses.schema import RESPONSES_FIELDS, ResponsesBody
from trinity_serve.api.schema import ChatBody, CompletionBody

ROW = re.compile(
    r"^\| `(\w+)` \| (both|chat|completions) \| (honoured|refused|no effect) \| (.+) \|$"
)
TABLE = [
    match.groups()
    for line in (ROOT / "docs/api.md").read_text(encoding="utf8").splitlines()
    if (match := ROW.match(line))
]
STATES = {name: state for name, _, state, _ in TABLE}
VLLM_EXTRAS = re.findall(
    r"\w+",
    """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words best_of cache_salt
    ec_transfer_params repetition_detection return_mm_kwargs return_prompt_text return_token_offsets
    watermarking
    chat_template chat_template_kwargs continue_final_message documents echo guided_choice
    guided_grammar guided_json guided_regex ignore_eos include_reasoning include_stop_str_in_output
    kv_transfer_params length_penalty logits_processors logprob_token_ids media_io_kwargs min_p
    min_tokens mm_processor_kwargs priority prompt_embeds prompt_logprobs repetition_penalty
    request_id return_token_ids return_tokens_as_token_ids routed_experts_prompt_start session_id
    skip_special_tokens spaces_between_special_tokens stop_token_ids stream_interval
    structured_outputs thinking_token_budget top_k truncate_prompt_tokens use_beam_search vllm_xargs
""",
)


OTHER_ROW = re.compile(r"^\| `(\w+)` \| (honoured|refused|no effect) \| (.+) \|$")


def names_of(body: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in body.model_fields.items()}


def parameters_of(*references: type) -> Iterable[str]:
    for reference in references:
        yield from reference.__annotations__


def test_no_parameter_stands_in_the_table_twice() -> None:
    assert len(STATES) == len(TABLE)


def test_every_parameter_of_openais_reference_is_in_the_table() -> None:
    known = parameters_of(
        chat.CompletionCreateParamsBase,
        chat.CompletionCreateParamsStreaming,
        completion.CompletionCreateParamsBase,
        completion.CompletionCreateParamsStreaming,
    )
    assert not set(known) - STATES.keys()


def test_every_extra_of_vllms_is_in_the_table() -> None:
    assert not set(VLLM_EXTRAS) - STATES.keys()


@pytest.mark.parametrize(("name", "endpoint", "state", "note"), TABLE)
def test_the_code_does_what_the_table_says(name: str, endpoint: str, state: str, note: str) -> None:
    in_chat, in_completions = name in names_of(ChatBody), name in names_of(CompletionBody)
    if state == "honoured":
        places = {(True, True): "both", (True, False): "chat", (False, True): "completions"}
        assert places[in_chat, in_completions] == endpoint
        assert name not in NOT_BUILT
        assert name not in WITHOUT_EFFECT
    else:
        assert not in_chat
        assert not in_completions
        assert endpoint == "both"
    if state == "refused":
        assert note.startswith(NOT_BUILT[name].reason)
    if state == "no effect":
        assert name in WITHOUT_EFFECT


def test_everything_that_the_code_knows_is_in_the_table() -> None:
    known = names_of(ChatBody) | names_of(CompletionBody) | NOT_BUILT.keys() | WITHOUT_EFFECT
    assert known == STATES.keys()


def section(title: str) -> dict[str, tuple[str, str]]:
    """Return state and note of each parameter in one endpoint's own table."""
    text = (ROOT / "docs/api.md").read_text(encoding="utf8")
    lines = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].splitlines()
    rows = [match.groups() for line in lines if (match := OTHER_ROW.match(line))]
    assert len({row[0] for row in rows}) == len(rows)
    return {name: (state, note) for name, state, note in rows}


REFERENCES: dict[str, tuple[type, ...]] = {
    "Responses": (
        responses.ResponseCreateParamsBase,
        responses.ResponseCreateParamsStreaming,
    ),
    "Messages": (
        messages.MessageCreateParamsBase,
        messages.MessageCreateParamsStreaming,
        counting.MessageCountTokensParams,
    ),
}
VLLM_RESPONSES = re.findall(
    r"\w+",
    """
    cache_salt enable_response_messages ignore_eos include_stop_str_in_output logit_bias
    previous_input_messages previous_response priority repetition_penalty request_id seed
    skip_special_tokens stop structured_outputs top_k
""",
)
BODIES: dict[str, tuple[type[BaseModel], FieldTable]] = {
    "Responses": (ResponsesBody, RESPONSES_FIELDS),
    "Messages": (MessagesBody, MESSAGES_FIELDS),
}


@pytest.mark.parametrize("title", REFERENCES)
def test_every_parameter_of_the_reference_is_in_the_endpoints_table(title: str) -> None:
    assert not set(parameters_of(*REFERENCES[title])) - section(title).keys()


def test_every_extra_of_vllms_responses_is_in_their_table() -> None:
    assert not set(VLLM_RESPONSES) - section("Responses").keys()


@pytest.mark.parametrize("title", BODIES)
def test_the_endpoints_code_does_what_its_table_says(title: str) -> None:
    body, fields = BODIES[title]
    for name, (state, note) in section(title).items():
        if state == "refused":
            assert name not in names_of(body)
            assert note.startswith(fields.not_built[name].reason)
        elif state == "honoured":
            assert name in names_of(body)
        else:
            assert name in fields.without_effect or name == "store"
    known = names_of(body) | fields.not_built.keys() | fields.without_effect
    assert known == section(title).keys()
