"""What is told to others about requests: traces."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from trinity_serve.config.sections import Section


def _off(value: object) -> object:
    """YAML reads a bare ``off`` as false."""
    return None if value is False or value == "off" else value


class ObservabilityConfig(Section):
    """Traces of requests by OpenTelemetry; needs the extra `trace`."""

    traces: Annotated[str | None, BeforeValidator(_off)] = None
    """Base address of an OTLP/HTTP receiver, e.g. http://127.0.0.1:4318; None: off."""
    trace_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of requests without a traceparent that are traced; one with it follows its flag."""

    @field_validator("traces")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not off, nor an http:// or https:// address")
        return value.rstrip("/")
