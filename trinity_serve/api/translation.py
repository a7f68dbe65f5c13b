"""From another endpoint's body to a chat's, and errors back to the names that the client used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import BaseModel

from cluster.errors import ContextTooLongError, InvalidRequestError
from trinity_serve.api.fields import NOT_BUILT
from trinity_serve.api.schema import ChatBody, CompletionBody, EngineOptions

Fields = dict[str, object]


def _names_of(body: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in body.model_fields.items())


NAMES_OF_CHAT = _names_of(ChatBody) | _names_of(CompletionBody) | frozenset(NOT_BUILT)
"""What chat and completions know, with `FieldTable.elsewhere`."""


def engine_options(body: EngineOptions) -> Fields:
    """Return what `body` says of the engine's work, for the body of a chat."""
    return {
        name: getattr(body, name)
        for name in EngineOptions.model_fields
        if name in body.model_fields_set
    }


def chat_body(fields: Fields) -> ChatBody:
    """Return the chat that `fields` are; what is None is left out."""
    return ChatBody.model_validate({k: v for k, v in fields.items() if v is not None})


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals name the fields as the client does: chat's name to the endpoint's."""
    try:
        yield
    except ContextTooLongError:
        # Its numbers say what is wrong, and clients know it by its code.
        raise
    except InvalidRequestError as error:
        param = error.param
        if param is None or param not in names:
            raise
        name = names[param]
        message = re.sub(rf"\b{re.escape(param)}\b", name, error.message)
        raise InvalidRequestError(name, message) from error
