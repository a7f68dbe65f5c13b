"""Every refusal as an OpenAI error object: `{"error": {message, type, param, code}}`.

Under `/v1/messages` it has Anthropic's form: `{"type": "error", "error": {type, message}}`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cluster.errors import TrinityError

_log = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {404: "not_found", 405: "method_not_allowed"}
ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_object(error: Exception) -> dict[str, object]:
    """Return the object for an error. What is not ours is logged and told as internal."""
    if isinstance(error, TrinityError):
        param = getattr(error, "param", None)
        return _object(str(error), error.http_status, param, error.code)
    _log.error("Unexpected error while answering a request.", exc_info=error)
    return _object("The server failed on this request.", 500, None, "internal_error")


def anthropic_error(error: Exception) -> dict[str, object]:
    """Return the object for an error in Anthropic's form."""
    status = error.http_status if isinstance(error, TrinityError) else 500
    return _anthropic_form(error_object(error), status)


def error_response(error: Exception, path: str = "") -> Response:
    """Return the whole HTTP answer for an error, with Retry-After where trying again may help.

    `path` is the route's, which decides the form.
    """
    status = error.http_status if isinstance(error, TrinityError) else 500
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = {}
    if isinstance(retry_after_s, int | float):
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return _response(error_object(error), status, headers, path)


def install_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error in this form."""

    @app.exception_handler(TrinityError)
    async def trinity_error(request: Request, error: TrinityError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid_body(request: Request, error: RequestValidationError) -> Response:
        param, message = _first_problem(error.errors())
        content = _object(message, 400, param, "invalid_parameter")
        return _response(content, 400, {}, request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        code = _CODES.get(error.status_code, "invalid_request")
        content = _object(message, error.status_code, None, code)
        headers = dict(error.headers or {})
        return _response(content, error.status_code, headers, request.url.path)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return error_response(error, request.url.path)


def _object(message: str, status: int, param: str | None, code: str) -> dict[str, object]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, kind),
            "param": param,
            "code": code,
        }
    }


def _anthropic_form(content: dict[str, object], status: int) -> dict[str, object]:
    error = content["error"]
    assert isinstance(error, dict)
    kind = "api_error" if status >= 500 else "invalid_request_error"
    told = {"type": _ANTHROPIC_TYPES.get(status, kind), "message": error["message"]}
    return {"type": "error", "error": told}


def _response(
    content: dict[str, object], status: int, headers: dict[str, str], path: str
) -> Response:
    if path.startswith(ANTHROPIC_PATH):
        content = _anthropic_form(content, status)
    # ASCII, so that a message may quote text that is not valid Unicode.
    body = json.dumps(content).encode("ascii")
    return Response(body, status, headers, media_type="application/json")


def _first_problem(problems: Sequence[object]) -> tuple[str | None, str]:
    """Return field and message of pydantic's first finding: field, what is allowed, the value."""
    problem = problems[0] if problems else None
    if not isinstance(problem, dict):
        return None, "The body is not valid."
    path = ".".join(str(part) for part in problem.get("loc", ())[1:])
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return None, f"The body is not JSON: {reason} (at character {path or 0})."
    if not path:
        return None, "The body must be a JSON object, sent with Content-Type: application/json."
    if problem["type"] == "missing":
        return path, f"{path} is required and missing."
    allowed = str(problem["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    value = ascii(problem.get("input"))
    value = value if len(value) <= 80 else value[:77] + "..."
    return path, f"{path} = {value} is not allowed: it {allowed}."
