"""Request bodies, as OpenAI's reference and vLLM's extras name their fields.

Only what is built stands here as a field; `fields.py` decides about every other name. Types are
strict: JSON's `"5"` is no number. Ranges that depend on the model or on limits are checked in
`sampling.py` and `prompts.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

TextType = Literal["text", "input_text", "output_text", "refusal"]
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def _prompt(value: object, _: ValidatorFunctionWrapHandler) -> object:
    if isinstance(value, str) or _is_ids(value):
        return value
    strings_or_ids = isinstance(value, list) and (
        all(isinstance(item, str) for item in value) or all(map(_is_ids, value))
    )
    if value and strings_or_ids:
        return value
    raise ValueError("must be a string, a list of strings, token ids, or a list of lists of ids")


def _strings(value: object, _: ValidatorFunctionWrapHandler) -> object:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("must be a string or a list of strings")


def _content(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    for position, part in enumerate(value if isinstance(value, list) else []):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind not in get_args(TextType):
            raise ValueError(f"may hold text only; part {position} is {ascii(kind)[:40]}")
    return handler(value)


def _json_schema(value: object, _: ValidatorFunctionWrapHandler) -> object:
    if value is None or isinstance(value, str | dict):
        return value
    raise ValueError("must be a JSON schema, as an object or as text")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


# Pydantic would report one error per member of the union; these report one in all.
Prompt = Annotated[str | list[str] | list[int] | list[list[int]], WrapValidator(_prompt)]
Stop = Annotated[str | list[str] | None, WrapValidator(_strings)]


class Body(BaseModel):
    """A request body. Names without a field are kept in `model_extra` for `fields.py`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Body):
    """A schema with its name."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What the content is: text, any JSON object, or JSON under a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """vLLM's form; exactly one is given."""

    json_: Annotated[
        str | dict[str, object] | None, Field(alias="json"), WrapValidator(_json_schema)
    ] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None

    def given(self) -> list[str]:
        """Return the names of what is asked for."""
        fields = {
            "json": self.json_,
            "json_object": self.json_object or None,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return [name for name, value in fields.items() if value is not None]


class EngineOptions(Body):
    """What every generation may say of the engine's work, whatever the endpoint's form."""

    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    bad_words: list[Annotated[str, Field(min_length=1)]] | None = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream_interval: Annotated[int, Field(ge=1, le=1024)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    session_id: Annotated[str, Field(max_length=256)] | None = None
    priority: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class GenerationBody(EngineOptions):
    """What chat and completions share."""

    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stop: Stop = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    routed_experts_prompt_start: Annotated[int, Field(ge=0)] | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None


class TextPart(Body):
    """One part of a message's content; only text is served."""

    type: TextType
    text: str


class Message(Body):
    """One message. Fields beyond these (`name`, `reasoning`, …) go to the template as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart] | None, WrapValidator(_content)] = None


class Function(Body):
    """What a tool is called and takes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class ToolName(Body):
    """Names a function."""

    name: str


class NamedTool(Body):
    """The one function that has to be called."""

    type: Literal["function"]
    function: ToolName


def _tool_choice(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError:
        message = (
            "must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"
        )
        raise ValueError(message) from None


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | None, WrapValidator(_tool_choice)
]


class ChatOptions(Body):
    """What decides how messages become a prompt."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    documents: list[dict[str, object]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


class ChatBody(ChatOptions, GenerationBody):
    """POST /v1/chat/completions."""

    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None


class TokenizeBody(Body):
    """POST /tokenize: `prompt`, or what a chat would send."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
