"""The one error tree.

The class says what happened, its fields travel through `Exception.args` (so that they survive
pickling at an actor border), `http_status` and `retryable` stand on the class, and the message
carries the values and what to do about them.
"""

from __future__ import annotations

from typing import ClassVar


class TrinityError(Exception):
    """Base of every error this system raises on purpose."""

    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    code: ClassVar[str] = "internal_error"


class ConfigError(TrinityError):
    """A configuration key is missing, unknown, or has a value that is not supported."""

    code = "invalid_config"

    def __init__(self, source: str, key: str, problem: str, supported: str) -> None:
        super().__init__(source, key, problem, supported)
        self.source, self.key, self.problem, self.supported = source, key, problem, supported

    def __str__(self) -> str:
        return f"{self.source}: {self.key}: {self.problem}. Supported: {self.supported}."


class CheckpointError(TrinityError):
    """A checkpoint file or tensor is missing, truncated, misnamed or of the wrong shape."""

    code = "invalid_checkpoint"

    def __init__(self, file: str, tensor: str, expected: str, found: str) -> None:
        super().__init__(file, tensor, expected, found)
        self.file, self.tensor, self.expected, self.found = file, tensor, expected, found

    def __str__(self) -> str:
        what = f"tensor {self.tensor}" if self.tensor else "file"
        return f"{self.file}: {what}: expected {self.expected}, found {self.found}."


class InvalidRequestError(TrinityError):
    """A request field has a value that is not allowed."""

    http_status = 400
    code = "invalid_parameter"

    def __init__(self, param: str | None, message: str) -> None:
        super().__init__(param, message)
        self.param, self.message = param, message

    def __str__(self) -> str:
        return self.message


class ContextTooLongError(InvalidRequestError):
    """Prompt plus requested output does not fit into the model's context."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_tokens: int, limit: int) -> None:
        message = (
            f"The prompt has {prompt_tokens} tokens and {max_tokens} more were asked for, "
            f"{prompt_tokens + max_tokens} in all; this model's context is {limit} tokens. "
            f"Shorten the prompt or lower max_tokens."
        )
        super().__init__("prompt", message)
        self.args = (prompt_tokens, max_tokens, limit)
        self.prompt_tokens, self.max_tokens, self.limit = prompt_tokens, max_tokens, limit


class ModelNotFoundError(TrinityError):
    """The request names a model that is not served here."""

    http_status = 404
    code = "model_not_found"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(model, served)
        self.model, self.served = model, served

    def __str__(self) -> str:
        return f"The model {self.model!r} is not served here. Served: {self.served!r}."


class BodyTooLargeError(TrinityError):
    """The request body is larger than the server accepts."""

    http_status = 413
    code = "body_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return f"The body has {self.size_bytes} bytes; the limit is {self.limit_bytes}."


class OverloadedError(TrinityError):
    """A bounded queue is full; nothing of the request was kept."""

    http_status = 429
    retryable = True
    code = "overloaded"

    def __init__(self, queue: str, limit: int, retry_after_s: float) -> None:
        super().__init__(queue, limit, retry_after_s)
        self.queue, self.limit, self.retry_after_s = queue, limit, retry_after_s

    def __str__(self) -> str:
        return f"The {self.queue} is full ({self.limit}). Try again in {self.retry_after_s:g} s."


class NotReadyError(TrinityError):
    """The server runs but cannot serve yet, or for now."""

    http_status = 503
    retryable = True
    code = "not_ready"

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return f"Not ready: {self.reason}. Try again in {self.retry_after_s:g} s."


class CoverageLostError(TrinityError):
    """No living shard holds an expert that a request needs, for longer than the grace time."""

    http_status = 503
    retryable = True
    code = "coverage_lost"

    def __init__(self, layer: int, num_experts: int, grace_s: float) -> None:
        super().__init__(layer, num_experts, grace_s)
        self.layer, self.num_experts, self.grace_s = layer, num_experts, grace_s
        self.retry_after_s = max(1.0, grace_s)

    def __str__(self) -> str:
        return (
            f"{self.num_experts} experts of layer {self.layer} have had no living shard for "
            f"{self.grace_s:g} s. The pool is restarting them; try again."
        )


class DeadlineExceededError(TrinityError):
    """A deadline passed before the work was done."""

    http_status = 504
    retryable = True
    code = "deadline_exceeded"

    def __init__(self, what: str, budget_s: float) -> None:
        super().__init__(what, budget_s)
        self.what, self.budget_s = what, budget_s

    def __str__(self) -> str:
        return f"{self.what} did not finish within {self.budget_s:g} s."


class CancelledRequestError(TrinityError):
    """The request was cancelled by its client or by shutdown."""

    http_status = 499
    code = "cancelled"

    def __init__(self, request_id: str, reason: str) -> None:
        super().__init__(request_id, reason)
        self.request_id, self.reason = request_id, reason

    def __str__(self) -> str:
        return f"Request {self.request_id} was cancelled: {self.reason}."


class WireError(TrinityError):
    """A frame cannot be accepted. `code` is what travels in the error frame."""

    code = "malformed_frame"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class MalformedFrameError(WireError):
    """Header, counts or array bounds contradict each other."""


class FrameTooLargeError(WireError):
    """A frame is larger than the negotiated bound."""

    code = "frame_too_large"


class ProtocolVersionError(WireError):
    """The peer speaks another version of the frame."""

    code = "wrong_protocol_version"


class WrongModelError(WireError):
    """The peer serves another model (fingerprint differs)."""

    code = "wrong_model"


class WrongBitClassError(WireError):
    """The peer computes in another bit class; its rows would change outputs."""

    code = "wrong_bit_class"


class ChecksumError(WireError):
    """The payload's checksum does not match: the frame was damaged on the way."""

    code = "checksum_mismatch"
    retryable = True


class UnauthenticatedError(WireError):
    """The peer did not present the cluster's token."""

    code = "unauthenticated"


class StaleEpochError(WireError):
    """The peer acts for an older epoch than one already seen."""

    code = "stale_epoch"


class LinkLostError(TrinityError):
    """The connection to a peer is gone, or the peer has been silent for too long."""

    retryable = True
    code = "link_lost"

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return f"Lost {self.peer}: {self.reason}."


class ShardFailedError(TrinityError):
    """A shard answered with an error that is not about placement, or gave non-finite rows."""

    retryable = True
    code = "shard_failed"

    def __init__(self, shard: int, problem: str) -> None:
        super().__init__(shard, problem)
        self.shard, self.problem = shard, problem

    def __str__(self) -> str:
        return f"Shard {self.shard} failed: {self.problem}."


class ModelDownloadError(TrinityError):
    """The Hub cannot give a model's files."""

    code = "model_download_failed"

    def __init__(self, model: str, reason: str, advice: str) -> None:
        super().__init__(model, reason, advice)
        self.model, self.reason, self.advice = model, reason, advice

    def __str__(self) -> str:
        return f"Cannot fetch {self.model} from the Hub: {self.reason} What to do: {self.advice}."


class NonFiniteRowsError(TrinityError):
    """Expert rows of a layer held NaN or infinity twice: the request's own rows cause it."""

    code = "non_finite_rows"

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.layer = layer

    def __str__(self) -> str:
        return (
            f"The experts of MoE layer {self.layer} gave NaN or infinity twice for this request. "
            f"Check the checkpoint with `trinity checkpoint inspect`."
        )


class PoisonedRequestError(TrinityError):
    """A request's own rows crash shards or are not finite; the others of its step are fine.

    `requests` are positions in the step's batch.
    """

    code = "poisoned_request"

    def __init__(self, requests: tuple[int, ...], layer: int, problem: str) -> None:
        super().__init__(requests, layer, problem)
        self.requests, self.layer, self.problem = requests, layer, problem

    def __str__(self) -> str:
        return (
            f"This request cannot be computed: in MoE layer {self.layer} {self.problem}. "
            f"Check the checkpoint with `trinity checkpoint inspect`."
        )


class ExpertNotHeldError(TrinityError):
    """A shard was asked for an expert that it does not hold; its answer names its placement."""

    retryable = True
    code = "expert_not_held"

    def __init__(self, shard: int, problem: str) -> None:
        super().__init__(shard, problem)
        self.shard, self.problem = shard, problem

    def __str__(self) -> str:
        return f"Shard {self.shard} does not hold what it was asked for: {self.problem}."


# --- the seam between the REST face and the engine ------------------------------------------


class IncompleteGenerationError(TrinityError):
    """The engine's events ended before a choice's last one."""

    retryable = True
    code = "incomplete_generation"

    def __init__(self, request_id: str, choice: int) -> None:
        super().__init__(request_id, choice)
        self.request_id, self.choice = request_id, choice

    def __str__(self) -> str:
        return f"The engine stopped in the middle of choice {self.choice} of {self.request_id}."


class NonFiniteLogitsError(TrinityError):
    """No token can be chosen: a row's largest logit is NaN or infinite."""

    code = "non_finite_logits"

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return (
            f"The model's largest logit is {self.value}, so that no token can be chosen. Check the "
            f"checkpoint with `trinity checkpoint inspect`, or the request's masks."
        )


class EngineFailedError(TrinityError):
    """The engine met an error that it does not know; every request open then ended with it."""

    code = "engine_failed"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"The engine failed unexpectedly: {self.problem}. Its log has the traceback."


class KernelInputError(TrinityError):
    """A kernel was called with a tensor of a shape, type or content it does not take."""

    code = "invalid_kernel_input"

    def __init__(self, argument: str, found: str, expected: str) -> None:
        super().__init__(argument, found, expected)
        self.argument, self.found, self.expected = argument, found, expected

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, found {self.found}."


class AdminRefusedError(TrinityError):
    """An admin call from elsewhere than this machine, or without the token of its file."""

    http_status = 403
    code = "admin_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Admin calls come from this machine and present its token: {self.reason}."


class SlowReaderError(TrinityError):
    """A client does not read what it asked for; the rest of its stream is not made."""

    http_status = 503
    retryable = True
    code = "slow_reader"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"The stream was ended: {self.limit} tokens of it were waiting to be read. "
            f"Read faster, or ask for fewer tokens."
        )


class InvalidApiKeyError(TrinityError):
    """A request without an API key, or with one that is not known."""

    http_status = 401
    code = "invalid_api_key"

    def __init__(self, was_given: bool) -> None:
        super().__init__(was_given)
        self.was_given = was_given

    def __str__(self) -> str:
        problem = "The API key is not known here" if self.was_given else "No API key was given"
        return f"{problem}. Send one as Authorization: Bearer KEY."


class ScopeRefusedError(TrinityError):
    """An API key that may not call this route."""

    http_status = 403
    code = "insufficient_scope"

    def __init__(self, name: str, needed: str) -> None:
        super().__init__(name, needed)
        self.name, self.needed = name, needed

    def __str__(self) -> str:
        return f"The API key {self.name!r} lacks the scope {self.needed!r} that this route needs."


class UnauthenticatedNetworkError(TrinityError):
    """A request from another machine to a server without API keys."""

    http_status = 403
    code = "unauthenticated_network_access"

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        return (
            f"This server has no API keys and answers its own machine only, not {self.host}. Its "
            f"operator may configure keys, or set security.allow_unauthenticated_network_access."
        )


class RateLimitedError(TrinityError):
    """An API key has used up one of its limits; nothing of the request was kept."""

    http_status = 429
    retryable = True
    code = "rate_limit_exceeded"

    def __init__(self, name: str, what: str, limit: int, retry_after_s: float) -> None:
        super().__init__(name, what, limit, retry_after_s)
        self.name, self.what, self.limit, self.retry_after_s = name, what, limit, retry_after_s

    def __str__(self) -> str:
        return (
            f"The API key {self.name!r} has used up its {self.what} ({self.limit}). Try again in "
            f"{self.retry_after_s:.3g} s."
        )


class NoSuchShardError(TrinityError):
    """An order about a shard that does not serve, or about an earlier life of its seat."""

    http_status = 404
    code = "no_such_shard"

    def __init__(self, shard: int, incarnation: int | None, serving: str) -> None:
        super().__init__(shard, incarnation, serving)
        self.shard, self.incarnation, self.serving = shard, incarnation, serving

    def __str__(self) -> str:
        life = "" if self.incarnation is None else f" of incarnation {self.incarnation}"
        return f"No shard {self.shard}{life} serves here. These do: {self.serving or 'none'}."
