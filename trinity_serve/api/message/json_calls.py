r"""Tool calls as JSON (Hermes): `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`.

Arguments are passed on as they are written, so what is not valid JSON reaches the client as it is.
"""

from __future__ import annotations

import json

from trinity_serve.api.message.calls import CallParser
from trinity_serve.api.message.source import Reading

_ARGUMENTS = ("arguments", "parameters")


class JsonCallParser(CallParser):
    """Reads a call's object key by key; streams the arguments once the name is known."""

    def read_call(self) -> Reading[bool]:
        """See `CallParser.read_call`."""
        source = self.source
        yield from source.space()
        if not (yield from source.accept("{")):
            return False
        name: str | None = None
        arguments: str | None = None
        while (key := (yield from self._key())) is not None:
            opens_object = (yield from source.peek()) == "{"
            if key in _ARGUMENTS and name is not None and opens_object:
                self.start_call(name)
                yield from source.value(self.add_arguments)
                yield from self._skip_rest()
                return True
            parts: list[str] = []
            if not (yield from source.value(parts.append)):
                return False
            value = "".join(parts)
            if key == "name":
                name = _text_of(value)
            elif key in _ARGUMENTS:
                arguments = value
        if name is None or not (yield from source.accept("}")):
            return False
        self.start_call(name)
        self.add_arguments(_unquoted(arguments))
        return True

    def _key(self) -> Reading[str | None]:
        """Read up to the next key's value; None where no key follows."""
        source = self.source
        yield from source.space()
        if (yield from source.accept(",")):
            yield from source.space()
        if (yield from source.peek()) != '"':
            return None
        parts: list[str] = []
        yield from source.value(parts.append)
        yield from source.space()
        if not (yield from source.accept(":")):
            return None
        yield from source.space()
        return _text_of("".join(parts))

    def _skip_rest(self) -> Reading[None]:
        """Read over what follows the arguments inside the object; it may lack its bracket."""
        while (yield from self._key()) is not None:
            yield from self.source.value(lambda _: None)
        yield from self.source.accept("}")


def _text_of(value: str) -> str | None:
    """Return a JSON string's text; None for what is none."""
    try:
        text = json.loads(value)
    except ValueError:
        return None
    return text if isinstance(text, str) and text else None


def _unquoted(arguments: str | None) -> str:
    """Arguments are sometimes an object inside a string, or left out."""
    if arguments is None or arguments == "null":
        return "{}"
    return _text_of(arguments) or arguments
