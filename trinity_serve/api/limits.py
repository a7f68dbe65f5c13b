"""What one request may ask for. Numbers are the operator's; each refusal names its limit."""

from __future__ import annotations

from dataclasses import dataclass

from trinity_serve.config import IngressConfig


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Bounds on a single request. The engine's own queue bounds how many there are.

    What an operator may want to set comes from the configuration (`of`); the rest are bounds that
    no client comes near.
    """

    max_open_requests: int = 512
    """Generations open in one ingress before the answer is 429."""
    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 30.0
    """How long a client may take to send its body."""
    request_timeout_s: float = 600.0
    """From the whole body's arrival to the last token; the `openai` client waits as long."""
    send_grace_s: float = 10.0
    """How much longer a client may take to read what the deadline left to send."""
    max_prompts: int = 128
    max_n: int = 16
    max_choices: int = 256
    """Prompts × n of one request."""
    max_messages: int = 4096
    max_tools: int = 128
    max_grammar_chars: int = 1 << 17
    max_schema_depth: int = 64
    grammar_timeout_s: float = 5.0
    max_tools_bytes: int = 1 << 19
    """Of all tool definitions of a request, as JSON."""
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
    """Characters of one stop string."""
    max_stop_token_ids: int = 128
    max_logprobs: int = 20
    max_prompt_logprobs: int = 1 << 18
    """Prompt tokens × log-probabilities told of each: some MB, sent in one piece."""
    max_bad_words: int = 128
    max_bad_word_chars: int = 256
    """Characters of one bad word."""
    template_timeout_s: float = 5.0
    max_rendered_chars: int = 16 << 20
    probe_timeout_s: float = 2.0
    """For `/ready` and `/metrics`: what is not answered by then counts as not ready."""

    @classmethod
    def of(cls, ingress: IngressConfig) -> ApiLimits:
        """Return the limits that the section `ingress` sets."""
        limits = ingress.limits
        return cls(
            max_open_requests=ingress.max_open_requests,
            max_body_bytes=ingress.max_body_bytes,
            request_timeout_s=ingress.request_timeout_s,
            max_n=ingress.max_choices,
            max_prompts=limits.max_prompts,
            max_choices=limits.max_total_choices,
            max_messages=limits.max_messages,
            max_tools=limits.max_tools,
            max_tools_bytes=limits.max_tools_bytes,
            max_stop_strings=limits.max_stop_strings,
            max_logprobs=limits.max_logprobs,
            max_prompt_logprobs=limits.max_prompt_logprobs,
            max_schema_depth=limits.max_schema_depth,
            max_grammar_chars=limits.max_grammar_chars,
            grammar_timeout_s=limits.grammar_timeout_s,
            template_timeout_s=limits.template_timeout_s,
        )
