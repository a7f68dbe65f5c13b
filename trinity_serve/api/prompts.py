"""Prompts and messages to token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.deadline import Deadline
from cluster.errors import InvalidRequestError
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.message.reasoning import END_THINK, THINK
from trinity_serve.api.sampling import check_ids
from trinity_serve.api.schema import ChatOptions, Message, Prompt
from trinity_serve.api.service import ModelService


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as ids. `opens_thought`: the prompt ends inside a `<think>` block."""

    ids: list[int]
    opens_thought: bool


_RESERVED_KWARGS = frozenset({"messages", "tools", "chat_template", "add_generation_prompt"})


async def completion_prompts(
    prompt: Prompt,
    service: ModelService,
    *,
    add_special_tokens: bool,
    limits: ApiLimits,
    deadline: Deadline,
) -> list[list[int]]:
    """Return the ids of each prompt, in order. Raises `InvalidRequestError`."""
    prompts = _as_list(prompt)
    if len(prompts) > limits.max_prompts:
        message = f"prompt holds {len(prompts)} prompts; allowed: {limits.max_prompts}."
        raise InvalidRequestError("prompt", message)
    encoded: list[list[int]] = []
    for item in prompts:
        if isinstance(item, str):
            ids = await service.encode(
                item, add_special_tokens=add_special_tokens, deadline=deadline
            )
        else:
            ids = item
            check_ids("prompt", ids, service.vocab_size)
        if not ids:
            raise InvalidRequestError("prompt", "A prompt is empty; it needs one token at least.")
        encoded.append(ids)
    return encoded


async def chat_prompt(
    options: ChatOptions,
    service: ModelService,
    *,
    add_special_tokens: bool,
    limits: ApiLimits,
    deadline: Deadline,
) -> ChatPrompt:
    """Render the messages and return their ids. Raises `InvalidRequestError`."""
    if service.template is None:
        message = f"The model {service.name!r} has no chat template; use /v1/completions."
        raise InvalidRequestError("messages", message)
    if len(options.messages) > limits.max_messages:
        message = f"messages holds {len(options.messages)}; allowed: {limits.max_messages}."
        raise InvalidRequestError("messages", message)
    text = await _render(options, service, limits, deadline)
    ids = await service.encode(text, add_special_tokens=add_special_tokens, deadline=deadline)
    if not ids:
        raise InvalidRequestError("messages", "The messages render to an empty prompt.")
    return ChatPrompt(ids, _opens_thought(text, options))


def _opens_thought(text: str, options: ChatOptions) -> bool:
    """A generation prompt ends with the tag; a continued message may be anywhere inside."""
    if not options.continue_final_message:
        return text.rstrip().endswith(THINK)
    content = str(_plain(options.messages[-1])["content"])
    return content.rfind(THINK) > content.rfind(END_THINK)


async def _render(
    options: ChatOptions, service: ModelService, limits: ApiLimits, deadline: Deadline
) -> str:
    template = service.template
    assert template is not None, "chat_prompt checks it"
    variables = _template_variables(options, template.source)
    messages = [_plain(message) for message in options.messages]
    budget = Deadline.after(min(limits.template_timeout_s, deadline.remaining_s()))
    text = await service.in_thread(
        lambda: template.render(messages, variables, budget, limits.max_rendered_chars),
        "Rendering the chat template",
        budget,
    )
    return _cut_after(text, messages[-1]) if options.continue_final_message else text


def _template_variables(options: ChatOptions, template: str) -> dict[str, object]:
    continue_final = bool(options.continue_final_message)
    if continue_final and options.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other."
        raise InvalidRequestError("continue_final_message", message)
    kwargs = options.chat_template_kwargs or {}
    taken = sorted(_RESERVED_KWARGS & kwargs.keys())
    if taken:
        message = f"chat_template_kwargs may not set {', '.join(taken)}."
        raise InvalidRequestError("chat_template_kwargs", message)
    add_prompt = options.add_generation_prompt is not False and not continue_final
    tools = [tool.model_dump(exclude_unset=True) for tool in options.tools or ()]
    return {
        "tools": tools or None,
        "documents": _documents(options, template),
        **_effort(options, template),
        **kwargs,
        "add_generation_prompt": add_prompt,
    }


def _documents(options: ChatOptions, template: str) -> list[dict[str, object]] | None:
    if options.documents and "documents" not in template:
        message = "documents is not supported: the model's chat template has no place for them."
        raise InvalidRequestError("documents", message)
    return options.documents or None


def _effort(options: ChatOptions, template: str) -> dict[str, object]:
    """`none` switches thought off; other efforts mean what the template makes of them."""
    effort = options.reasoning_effort
    if effort is None:
        return {}
    if effort == "none":
        return {"reasoning_effort": effort, "enable_thinking": False}
    if "reasoning_effort" not in template:
        message = (
            f"reasoning_effort = {effort} is not supported: the model's chat template knows no "
            f"efforts. Leave it out, or set none, which switches thinking off."
        )
        raise InvalidRequestError("reasoning_effort", message)
    return {"reasoning_effort": effort}


def _as_list(prompt: Prompt) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    return [ids] if ids else [item for item in prompt if not isinstance(item, int)]


def _plain(message: Message) -> dict[str, object]:
    """A message as templates expect it: content is text, arguments of calls are objects."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is not None and not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    plain: dict[str, object] = {**(message.model_extra or {}), "role": role}
    # An assistant that only calls tools has null here; templates join text.
    plain["content"] = content or ""
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(plain["tool_calls"])
    return plain


def _tool_calls(calls: object) -> list[object]:
    problem = InvalidRequestError(
        "messages", "tool_calls must be a list of objects, their arguments JSON text."
    )
    if not isinstance(calls, list):
        raise problem
    parsed: list[object] = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise problem
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError as error:
                raise problem from error
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def _cut_after(text: str, final_message: dict[str, object]) -> str:
    """Drop what the template writes after the last message, so that it can go on."""
    content = str(final_message["content"]).strip()
    position = text.rfind(content) if content else -1
    if position < 0:
        message = "continue_final_message needs a last message whose text the template keeps."
        raise InvalidRequestError("continue_final_message", message)
    return text[: position + len(content)]
