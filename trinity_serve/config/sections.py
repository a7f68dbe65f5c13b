"""The sections of `ServeConfig`. Each key is read by some part; none is there for later."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

from trinity_serve.config.limits import LimitsConfig, check_limits

RootPath = Annotated[str, Field(pattern=r"^((/[A-Za-z0-9._~-]+)+)?$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.\[\]:-]+)$")]
KernelName = Literal["auto", "reference", "cpu", "cuda"]
TransportName = Literal["auto", "inproc", "unix", "grpc", "collective"]


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ModelConfig(Section):
    """Which checkpoint is served, and in which arithmetic."""

    path: str = Field(min_length=1)
    """Local folder (on every node the same) or Hub id."""
    served_name: str | None = None
    """The name clients ask for; by default the path's last component."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    kernels: KernelName = "auto"
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus output in tokens; by default what the checkpoint was made for."""

    @property
    def public_name(self) -> str:
        """The name under `/v1/models`."""
        return self.served_name or PurePath(self.path).name


class ResourcesConfig(Section):
    """What Ray reserves for one process, and where it may put it."""

    num_cpus: float = Field(default=0.0, ge=0.0)
    num_gpus: float = Field(default=0.0, ge=0.0)
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels the process's node must have, in Ray's label-selector form."""


class AutoscalingConfig(Section):
    """How many attention ranks follow from the load; `num_replicas` is the least."""

    max_replicas: int = Field(default=0, ge=0)
    """At or below `num_replicas`: the number changes by `trinity scale` alone."""
    waiting_tokens: int = Field(default=4096, ge=1)
    """Prompt tokens that wait in one rank, above which there are too few."""
    kv_usage: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of the KV in use, mean over ranks, above which there are too few."""
    up_after_s: float = Field(default=5.0, ge=0.0)
    down_after_s: float = Field(default=60.0, ge=0.0)
    """How long a load has to last before a rank is added, and before one is ended."""


class AttentionConfig(Section):
    """Attention ranks: how many, and what one step may hold."""

    num_replicas: int = Field(default=1, ge=1)
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that run at once in one rank."""
    max_num_batched_tokens: int = Field(default=1024, ge=1)
    """Rows of one engine step."""
    max_prefill_chunk: int = Field(default=512, ge=1)
    """Prompt rows that may join a step in which others decode; `max_mixed_step_s` allows fewer."""
    max_mixed_step_s: float = Field(default=0.25, gt=0.0)
    """Seconds that such a step may take, which is the others' inter-token gap meanwhile.

    Rows are as many as earlier steps foretell to fit, at least 32, so that the prompt gets on.
    Where decoding alone takes more than half of it, twice the decodes' time counts instead.
    """
    max_waiting: int = Field(default=256, ge=1)
    """Choices that wait in one rank before the answer is 429."""
    kv_memory_bytes: ByteSize = Field(default=ByteSize(512 * 2**20), gt=0)
    """Memory for K and V of one rank, both pools; accepts "2GiB"."""
    num_threads: int | None = Field(default=None, ge=1)
    """Kernel threads of a rank; by default every core, since shards wait while it computes."""
    micro_batch_rows: int | None = Field(default=None, ge=2)
    """Steps of so many rows run as two micro-batches: one's attention while the other's rows are
    away. By default never: it reads every expert twice, and pays where shards have cores or devices
    of their own."""
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _check_step(self) -> AttentionConfig:
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs {self.max_num_seqs} is above max_num_batched_tokens "
                f"{self.max_num_batched_tokens}: a step could not hold one row per sequence"
            )
        if self.max_prefill_chunk > self.max_num_batched_tokens:
            raise ValueError(
                f"max_prefill_chunk {self.max_prefill_chunk} is above max_num_batched_tokens "
                f"{self.max_num_batched_tokens}: no step could hold such a chunk"
            )
        return self


def check_copies(num_shards: int, num_replicas: int) -> None:
    """Raise ValueError when so many shards cannot hold so many copies of an expert."""
    if num_replicas > num_shards:
        raise ValueError(
            f"num_replicas {num_replicas} is above num_shards {num_shards}: two copies of an "
            f"expert in one process would die together"
        )


class ExpertsConfig(Section):
    """Expert shards: how many, how ranks reach them, when one counts as lost."""

    num_shards: int = Field(default=4, ge=1)
    num_replicas: int = Field(default=1, ge=1)
    """Copies of each expert, the primary included, each in a process of its own; with 2, the loss
    of any one shard goes unnoticed."""
    domain_label: str | None = None
    """Ray node label whose nodes fail together, e.g. ``zone``: copies are kept apart by it."""
    transport: TransportName = "auto"
    """`auto`: inside one process when inline, a Unix socket on one host, gRPC otherwise.
    `collective`: as `auto`, and large rows by groups of torch.distributed beside it, which are
    neither encrypted nor needed: rows take the other way while there is none."""
    num_threads: int | None = Field(default=None, ge=1)
    """Kernel threads of a shard; by default the host's cores divided by the shards."""
    ping_interval_s: float = Field(default=0.25, gt=0.0)
    dead_after_s: float = Field(default=1.2, gt=0.0)
    """A shard silent for so long, pings unanswered, is dead; one that said it is busy has the time
    it asked for on top."""
    coverage_grace_s: float = Field(default=30.0, gt=0.0)
    """How long a request waits for an expert that no living shard holds, before it is failed."""
    hedge_factor: float = Field(default=3.0, ge=1.0)
    """A call is late when it takes so many times as long as 99 of 100 such calls of its shard; its
    rows are then asked of another copy too, and whoever answers first gives them."""
    hedge_floor_s: float = Field(default=0.05, gt=0.0)
    """No call is late before it has taken so long."""
    hedge_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Of all calls, how many may be asked twice, so that shards that are all slow are not asked for
    twice as much; 0: none."""
    replica_bytes: ByteSize = Field(default=ByteSize(0), ge=0)
    """Of one copy more for the experts whose loss would cost most, over all shards; "2GiB"."""
    load_report_s: float = Field(default=10.0, gt=0.0)
    """How often ranks tell the pool where their rows went, and the pool plans for it."""
    balance_margin: float = Field(default=1.15, ge=1.0)
    """Experts change shards only while the busiest shard of a layer has so many times the mean."""
    move_bytes_per_s: ByteSize = Field(default=ByteSize(64 * 2**20), ge=0)
    """Most that load alone may have shards read; 0: never."""
    warm_spare: bool = False
    """Keep one process with its imports done, to take over the slice of a shard that is lost: some
    0.2 GB for two seconds less without it."""
    orphan_grace_s: float = Field(default=60.0, gt=0.0)
    """A shard that has heard neither a pool nor a rank for so long ends itself."""
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _check_copies(self) -> ExpertsConfig:
        check_copies(self.num_shards, self.num_replicas)
        return self

    @model_validator(mode="after")
    def _check_times(self) -> ExpertsConfig:
        if self.dead_after_s < 2 * self.ping_interval_s:
            raise ValueError(
                f"dead_after_s {self.dead_after_s:g} is below two ping intervals "
                f"({2 * self.ping_interval_s:g} s): one late ping would kill a shard"
            )
        if self.orphan_grace_s <= self.dead_after_s:
            raise ValueError(
                f"orphan_grace_s {self.orphan_grace_s:g} must be above dead_after_s "
                f"{self.dead_after_s:g}: shards would end before their pool is missed"
            )
        return self


class IngressConfig(Section):
    """The HTTP face: where it listens and what it takes in."""

    num_replicas: int = Field(default=1, ge=1)
    host: str = "127.0.0.1"
    """Inline and local only; on a cluster `http_options.host` of the Serve file counts."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Inline and local only; on a cluster `http_options.port` of the Serve file counts."""
    max_open_requests: int = Field(default=512, ge=1)
    """Requests open in one ingress replica before the answer is 429."""
    max_body_bytes: ByteSize = Field(default=ByteSize(8 * 2**20), gt=0)
    max_choices: int = Field(default=16, ge=1)
    """Largest `n`."""
    tool_parser: Literal["auto", "hermes", "xml"] = "auto"
    """How the model writes tool calls; `auto`: as its chat template shows it."""
    reasoning_parser: Literal["auto", "think", "none"] = "auto"
    """Whether `<think>` blocks are split off; `auto`: if the chat template has them."""
    request_timeout_s: float = Field(default=600.0, gt=0.0)
    """The one deadline of a request, from accept to last byte."""
    limits: LimitsConfig = LimitsConfig()
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose web pages may call from a browser, as `https://chat.example.org`; `*`: all."""
    root_path: RootPath = ""
    """Prefix below which a reverse proxy shows this server, stripped by it or not: `/llm`. On a
    cluster Serve's `route_prefix` and `http_options.root_path` need nothing here."""
    admin_token_folder: str | None = None
    """Where the file is whose text admin calls present; by default the node's folder for temporary
    files. One that all nodes share lets a call reach any ingress."""
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    """PEM files of HTTPS, inline only (read again when they change); on a cluster
    `http_options.ssl_certfile` and `ssl_keyfile` of the Serve file count."""
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _check_tls(self) -> IngressConfig:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file are given together or not at all")
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> IngressConfig:
        check_limits(
            self.limits,
            max_choices=self.max_choices,
            max_body_bytes=self.max_body_bytes,
            request_timeout_s=self.request_timeout_s,
        )
        return self


class NetworkConfig(Section):
    """Listeners between our own processes. None: the Ray node's address (loopback when local)."""

    bind_host: str | None = None
    advertise_host: str | None = None
