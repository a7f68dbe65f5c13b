"""What is served under one name: tokenizer, template, defaults, context length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cluster.deadline import Deadline
from cluster.errors import DeadlineExceededError
from trinity_serve.api.chat_template import ChatTemplate, tokenizer_info
from trinity_serve.api.message.formats import (
    MessageFormats,
    ReasoningParserName,
    ToolParserName,
)
from trinity_serve.api.tokenizer import TOKENIZER_FILE, TextTokenizer
from trinity_serve.engine.grammar import GrammarCompiler
from trinity_serve.model.generation_config import GenerationDefaults

T = TypeVar("T")
_INLINE_CHARS = 2000
"""Up to here encoding takes about as long as a thread switch."""


@dataclass(frozen=True)
class ModelService:
    """The text side of one model. Owns two threads for slow text work; `close` ends them."""

    name: str
    tokenizer: TextTokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    max_model_len: int
    vocab_size: int
    created_s: int = 0
    formats: MessageFormats = field(default_factory=MessageFormats)
    grammars: GrammarCompiler | None = None
    """Checks grammars; the ranks compile them again for themselves."""
    tokenizer_info: Mapping[str, object] = field(default_factory=dict)
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="api-text")
    )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        name: str,
        defaults: GenerationDefaults,
        max_model_len: int,
        vocab_size: int,
        tool_parser: ToolParserName = "auto",
        reasoning_parser: ReasoningParserName = "auto",
    ) -> ModelService:
        """Read tokenizer and template of the checkpoint in `folder`. Raises `ConfigError`."""
        template = ChatTemplate.from_folder(folder)
        return cls(
            name=name,
            tokenizer=TextTokenizer.from_folder(folder),
            template=template,
            formats=MessageFormats.settle(tool_parser, reasoning_parser, template),
            grammars=GrammarCompiler(folder / TOKENIZER_FILE, vocab_size, defaults.eos_token_ids),
            tokenizer_info=tokenizer_info(folder),
            defaults=defaults,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            created_s=int((folder / "tokenizer.json").stat().st_mtime),
        )

    async def encode(self, text: str, *, add_special_tokens: bool, deadline: Deadline) -> list[int]:
        """Return the ids of `text`; long texts are encoded off the event loop."""
        if len(text) <= _INLINE_CHARS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await self.in_thread(
            lambda: self.tokenizer.encode(text, add_special_tokens=add_special_tokens),
            "Encoding the prompt",
            deadline,
        )

    async def in_thread(self, work: Callable[[], T], what: str, deadline: Deadline) -> T:
        """Run `work` in a text thread. Raises `DeadlineExceededError` naming `what`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await loop.run_in_executor(self.threads, work)
        except TimeoutError as error:
            raise DeadlineExceededError(what, deadline.budget_s) from error

    def close(self) -> None:
        """End the text threads; work that waits for one is dropped."""
        self.threads.shutdown(wait=False, cancel_futures=True)
