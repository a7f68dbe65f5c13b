"""Chat messages to prompt text, by the checkpoint's own Jinja template in a sandbox.

A template comes with a checkpoint and is never taken from a request. It still runs under limits,
in a thread of its own, since a loop over a hostile conversation must not stop the event loop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.deadline import Deadline
from cluster.errors import ConfigError, InvalidRequestError

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_TOLD_KEYS = ("tokenizer_class", "add_bos_token", "add_eos_token", "model_max_length")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """A compiled template with the checkpoint's special tokens. Immutable, safe in any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(origin, "chat_template", str(error), "a Jinja2 template") from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """Read `chat_template.jinja`, else `tokenizer_config.json`; None when neither has one.

        Raises `ConfigError` when a file cannot be read as what it should be.
        """
        config = _read_config(folder / TOKENIZER_CONFIG_FILE)
        path = folder / TEMPLATE_FILE
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), _special_tokens(config), str(path))
        source = config.get("chat_template")
        if not isinstance(source, str):
            return None
        return cls(source, _special_tokens(config), str(folder / TOKENIZER_CONFIG_FILE))

    def render(
        self,
        messages: list[dict[str, object]],
        options: Mapping[str, object],
        deadline: Deadline,
        max_chars: int,
    ) -> str:
        """Return the prompt text. Blocks: call it off the event loop.

        `options` are variables such as `add_generation_prompt`. Raises `InvalidRequestError` when
        the template refuses the messages or its output passes `max_chars`, and
        `DeadlineExceededError` when it runs past `deadline`.
        """
        variables = {**self._special_tokens, **options, "messages": messages}
        try:
            return _bounded_join(self._template.generate(variables), deadline, max_chars)
        except InvalidRequestError:
            raise
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            message = f"The chat template does not accept these messages: {error}"
            raise InvalidRequestError("messages", message) from error


def tokenizer_info(folder: Path) -> dict[str, object]:
    """Return what a client needs that renders and counts tokens by itself, as vLLM tells it.

    Raises `ConfigError` when a file cannot be read as what it should be.
    """
    config = _read_config(folder / TOKENIZER_CONFIG_FILE)
    info: dict[str, object] = {key: config[key] for key in _TOLD_KEYS if key in config}
    tokens = _special_tokens(config)
    info |= {name: tokens.get(name) for name in _SPECIAL_TOKENS}
    template = ChatTemplate.from_folder(folder)
    return info | {"chat_template": None if template is None else template.source}


def _bounded_join(parts: Iterator[str], deadline: Deadline, max_chars: int) -> str:
    kept: list[str] = []
    num_chars = 0
    for part in parts:
        kept.append(part)
        num_chars += len(part)
        if num_chars > max_chars:
            message = f"The rendered messages pass the limit of {max_chars} characters."
            raise InvalidRequestError("messages", message)
        deadline.check("Rendering the chat template", time.monotonic())
    return "".join(kept)


def _read_config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(str(path), "(file)", str(error), "a JSON object") from error
    if not isinstance(config, dict):
        raise ConfigError(str(path), "(file)", "it is not an object", "a JSON object")
    return config


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Special tokens stand in the file as text, or as an object with `content`."""
    found: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
