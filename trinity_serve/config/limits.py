"""The section `ingress.limits` of `ServeConfig`: what one request may ask for."""

from __future__ import annotations

from pydantic import BaseModel, ByteSize, ConfigDict, Field


class LimitsConfig(BaseModel):
    """Bounds on a single request; what is beyond one is refused with 400, naming it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_prompts: int = Field(default=128, ge=1)
    """Prompts in the list of one completion."""
    max_total_choices: int = Field(default=256, ge=1)
    """Prompts times `n` of one request."""
    max_messages: int = Field(default=4096, ge=1)
    max_tools: int = Field(default=128, ge=1)
    max_tools_bytes: ByteSize = Field(default=ByteSize(512 * 2**10), gt=0)
    """All tool definitions of a request, as JSON; accepts "512KiB"."""
    max_stop_strings: int = Field(default=16, ge=1)
    max_logprobs: int = Field(default=20, ge=0)
    """Log-probabilities told besides each token's own; 20 is what OpenAI's clients may ask for."""
    max_prompt_logprobs: int = Field(default=2**18, ge=1)
    """Prompt tokens times log-probabilities told of each."""
    max_schema_depth: int = Field(default=64, ge=1)
    """Levels of a JSON schema."""
    max_grammar_chars: int = Field(default=2**17, ge=1)
    """Characters of the grammar that an output is held to, schemas of strict tools included."""
    grammar_timeout_s: float = Field(default=5.0, gt=0.0)
    """For compiling it."""
    template_timeout_s: float = Field(default=5.0, gt=0.0)
    """For rendering the chat template."""


def check_limits(
    limits: LimitsConfig, *, max_choices: int, max_body_bytes: int, request_timeout_s: float
) -> None:
    """Raise ValueError for limits that other keys of the ingress leave without a meaning."""
    if limits.max_total_choices < max_choices:
        raise ValueError(
            f"limits.max_total_choices {limits.max_total_choices} is below max_choices "
            f"{max_choices}: no request could have so many"
        )
    given = limits.model_fields_set
    if "max_tools_bytes" in given and limits.max_tools_bytes > max_body_bytes:
        raise ValueError(
            f"limits.max_tools_bytes {limits.max_tools_bytes} is above max_body_bytes "
            f"{max_body_bytes}: no body could hold so many"
        )
    for name in ("grammar_timeout_s", "template_timeout_s"):
        timeout_s = float(getattr(limits, name))
        if name in given and timeout_s > request_timeout_s:
            raise ValueError(
                f"limits.{name} {timeout_s:g} is above request_timeout_s {request_timeout_s:g}, "
                f"which ends a request before"
            )
