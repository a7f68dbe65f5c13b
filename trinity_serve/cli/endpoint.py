"""A small client of an OpenAI-style endpoint for the terminal, on the standard library alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from typing import TypedDict
from urllib.parse import urlsplit

import click

READ_TIMEOUT_S = 60.0
"""Longest silence of the server that is waited for: prefill of a long prompt sends nothing."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class EndpointError(click.ClickException):
    """The endpoint cannot be reached, or refused the request."""

    exit_code = 2


class Endpoint:
    """An endpoint at `url` (with or without `/v1`); blocking, one request at a time."""

    def __init__(self, url: str, api_key: str = "") -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise EndpointError(f"{url!r} is not an http:// or https:// address")
        self.base_url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        """Return the id of the first model served. Raises EndpointError when there is none."""
        with self._open("/models", None) as response:
            served = _loads(response.read())
        models = served.get("data")
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            raise EndpointError(f"{self.base_url} serves no model")
        return str(models[0].get("id"))

    def stream_chat(
        self, model: str, messages: Sequence[Message], options: dict[str, float]
    ) -> Generator[str, None, None]:
        """Yield the answer's pieces as they come. Closing the iterator cancels the request."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        with self._open("/chat/completions", body) as response:
            try:
                yield from _pieces(response)
            except (HTTPException, OSError) as error:
                raise EndpointError(f"the answer broke off: {error}") from error

    def _open(self, path: str, body: object) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self._headers)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=READ_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise EndpointError(_refusal(error)) from error
        except (HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise EndpointError(f"nothing answers at {self.base_url}: {reason}") from error
        return response


def _pieces(lines: HTTPResponse) -> Iterator[str]:
    """Yield the content of each server-sent event up to `[DONE]`."""
    for line in lines:
        data = line.decode().strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if data.startswith("{"):
            yield _piece(_loads(data))
    raise EndpointError("the answer broke off: the stream ended without [DONE]")


def _piece(chunk: dict[str, object]) -> str:
    if "error" in chunk:
        raise EndpointError(_message_of(chunk))
    match chunk:
        case {"choices": [{"delta": {"content": str(content)}}, *_]}:
            return content
    return ""


def _loads(text: str | bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EndpointError(f"the answer is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _message_of(body: dict[str, object]) -> str:
    match body:
        case {"error": {"message": str(message)}}:
            return message
    return json.dumps(body)


def _refusal(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    if text.lstrip().startswith("{"):
        return f"{error.code}: {_message_of(_loads(text))}"
    return f"{error.code} {error.reason}"
