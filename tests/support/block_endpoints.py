"""What tests of the endpoints with blocks share: /v1/responses and /v1/messages, over a script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import orjson

from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.service import ModelService
from trinity_serve.model.generation_config import GenerationDefaults

Fields = dict[str, object]
EOS_ID = 3
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER_SCHEMA: Fields = {"type": "object", "properties": {"city": {"type": "string"}}}


@dataclass(frozen=True)
class BlockEndpoint:
    """One of them, by its path."""

    path: str

    async def whole(self, http: httpx.AsyncClient, body: Fields) -> Fields:
        """Return the answer to `body`, which must be a good one."""
        response = await http.post(self.path, json=body)
        assert response.status_code == 200, response.text
        return cast(Fields, response.json())

    async def events(self, http: httpx.AsyncClient, body: Fields) -> list[Fields]:
        """Return the events of the streamed answer; each is named by its type."""
        response = await http.post(self.path, json=body | {"stream": True})
        events = []
        for part in response.text.removesuffix("\n\n").split("\n\n"):
            name, data = part.split("\n")
            events.append(orjson.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        return events


@contextmanager
def open_service(checkpoint: Path, max_model_len: int) -> Iterator[ModelService]:
    """A service of `checkpoint` with room for conversations."""
    service = ModelService.from_folder(
        checkpoint,
        name="tiny",
        defaults=GenerationDefaults(eos_token_ids=(EOS_ID,)),
        max_model_len=max_model_len,
        vocab_size=512,
    )
    yield service
    service.close()


def say(engine: ScriptedEngine, service: ModelService, text: str) -> list[int]:
    """Let the engine say `text` and end; return the tokens."""
    ids = [*service.tokenizer.encode(text, add_special_tokens=False), EOS_ID]
    engine.script = lambda request: ids
    return ids


def prompt_of(engine: ScriptedEngine, service: ModelService) -> str:
    """Return the last prompt as text."""
    ids = list(engine.requests[-1].prompt_ids)
    return service.tokenizer.decode(ids, skip_special_tokens=False)
