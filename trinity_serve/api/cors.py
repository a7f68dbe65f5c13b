"""Web pages of other origins that may call from a browser: those that the operator names."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_TOLD_HEADERS = (
    "x-request-id",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of `origins` call `app`; none: browsers keep every other page away.

    Asking for leave needs no key, and refusals reach the page too, so this goes around all else.
    Cookies are never part of it.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=list(_TOLD_HEADERS),
        )
