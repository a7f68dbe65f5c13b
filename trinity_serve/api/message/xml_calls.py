r"""Tool calls as XML (Qwen3-Coder): `<function=NAME>` with a `<parameter=KEY>` for each argument.

Values are text. What becomes of them is decided by the function's schema: text where it allows a
string, else JSON if they are that, else text all the same, which is what the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from trinity_serve.api.message.calls import CallParser
from trinity_serve.api.message.source import Reading

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
TextParameters = Mapping[str, frozenset[str]]
"""For each function the parameters that are strings and nothing else."""


class XmlCallParser(CallParser):
    """Reads a call parameter by parameter; streams values that can only be strings."""

    def __init__(self, text_parameters: TextParameters, *, parallel: bool) -> None:
        self._text_parameters = text_parameters
        self._line_break = ""
        """May stand before `</parameter>`."""
        super().__init__(parallel=parallel)

    def read_call(self) -> Reading[bool]:
        """See `CallParser.read_call`."""
        source = self.source
        yield from source.space()
        if not (yield from source.accept(FUNCTION)):
            return False
        name = yield from self._name()
        if name is None:
            return False
        self.start_call(name)
        self.add_arguments("{")
        separator = ""
        while (yield from self._at_parameter()):
            key = yield from self._name()
            if key is None:
                return True
            self.add_arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            separator = ", "
            is_text = key in self._text_parameters.get(name, ())
            if not (yield from (self._text() if is_text else self._value())):
                return True
        if not (yield from source.peek()):
            return True
        self.add_arguments("}")
        yield from source.accept(END_FUNCTION)
        return True

    def _at_parameter(self) -> Reading[bool]:
        yield from self.source.space()
        return (yield from self.source.accept(PARAMETER))

    def _name(self) -> Reading[str | None]:
        """Read up to `>`; None when that never comes, or not on this line."""
        parts: list[str] = []
        while (char := (yield from self.source.peek())) != ">":
            if char in ("", "\n", "<"):
                return None
            parts.append(self.source.take())
        self.source.take()
        return "".join(parts).strip().strip("\"'") or None

    def _text(self) -> Reading[bool]:
        """Stream a string."""
        self.add_arguments('"')
        yield from self.source.accept("\n")
        ended = yield from self.source.until(END_PARAMETER, self._add_text)
        if ended:
            self.add_arguments('"')
        self._line_break = ""
        return ended

    def _add_text(self, text: str) -> None:
        text = self._line_break + text
        self._line_break = "\n" if text.endswith("\n") else ""
        self.add_arguments(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

    def _value(self) -> Reading[bool]:
        """Collect a value and tell it as the JSON it is, or as a string."""
        parts: list[str] = []
        yield from self.source.accept("\n")
        ended = yield from self.source.until(END_PARAMETER, parts.append)
        text = "".join(parts).removesuffix("\n")
        value = _as_json(text)
        self.add_arguments(value if ended else value.removesuffix('"'))
        return ended


def _as_json(text: str) -> str:
    try:
        return json.dumps(json.loads(text, parse_constant=_refuse), ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
