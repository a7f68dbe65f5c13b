"""A client of the admin routes for `trinity scale` and `trinity status`, without dependencies."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from cluster.errors import AdminRefusedError
from trinity_serve.admin_token import FILE_HEADER, read_token
from trinity_serve.cli.endpoint import EndpointError

TIMEOUT_S = 30.0
Answer = dict[str, object]


class AdminClient:
    """Admin calls to the server at `url`, with a key or the token it says where to find."""

    def __init__(self, url: str, token_file: str | None = None, api_key: str | None = None) -> None:
        self._base_url = url.rstrip("/").removesuffix("/v1")
        self._token = api_key or (_read(Path(token_file)) if token_file else "")

    def status(self) -> Answer:
        """Return `GET /v1/cluster`."""
        return self._call("/v1/cluster", None)

    def scale(self, wanted: Answer) -> Answer:
        """Send `POST /v1/cluster/scale`; return the operation, empty when there is none."""
        return self._call("/v1/cluster/scale", wanted)

    def _call(self, path: str, body: Answer | None) -> Answer:
        try:
            return self._send(path, body)
        except urllib.error.HTTPError as error:
            token_file = error.headers.get(FILE_HEADER)
            if error.code != 403 or token_file is None or self._token:
                raise EndpointError(_reason(error)) from error
            self._token = _read(Path(token_file))
        try:
            return self._send(path, body)
        except urllib.error.HTTPError as error:
            raise EndpointError(_reason(error)) from error

    def _send(self, path: str, body: Answer | None) -> Answer:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base_url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError:
            raise
        except (HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise EndpointError(f"nothing answers at {self._base_url}: {reason}") from error
        return answer if isinstance(answer, dict) else {}


def _read(path: Path) -> str:
    try:
        return read_token(path)
    except AdminRefusedError as error:
        raise EndpointError(str(error)) from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return f"{error.code}: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
