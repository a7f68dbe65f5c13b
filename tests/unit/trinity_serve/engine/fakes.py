"""A model that is nothing but its KV cache: it reads each context back through the block tables."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.logits_processors import Float32, LogitsProcessor
from trinity_serve.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from trinity_serve.engine.sampler import Sample, Sampler
from trinity_serve.engine.sequence import Sequence
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView

VOCAB_SIZE = 40


def context_logits(context: Int64) -> Float32:
    """Logits as a hash of every token of the context and its place."""
    places = np.arange(1, len(context) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (context.astype(np.uint64) + np.uint64(1)) * (places | np.uint64(1))
    state = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)))
    words = state + np.arange(1, VOCAB_SIZE + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    logits_V: Float32 = ((words >> np.uint64(40)) / float(1 << 22)).astype(np.float32)
    return logits_V


class FakeRunner:
    """Stores token ids where K and V would go and asserts that all a row may see is there."""

    def __init__(self, config: EngineConfig) -> None:
        self.vocab_size = VOCAB_SIZE
        self.errors: list[Exception] = []
        """Raised by the next forward passes, in order."""
        self.hold = threading.Event()
        """Cleared: forward passes hang until it is set."""
        self.hold.set()
        self.entered = threading.Event()
        self.sign_at_s = 0.0
        """When a forward pass last showed that it goes on."""
        self.rows_per_step: list[int] = []
        self.widest_prefill_beside_decode = 0
        self._window = config.sliding_window
        self._global: Int64 = np.full((config.num_global_blocks * KV_BLOCK_SIZE, 2), -1)
        self._sliding: Int64 = np.full((config.num_sliding_blocks * KV_BLOCK_SIZE, 2), -1)
        self._woken = threading.Event()

    def forward(self, batch: ForwardBatch) -> Tensor:
        self.entered.set()
        self.hold.wait(30.0)
        if self.errors:
            raise self.errors.pop(0)
        self._note(batch)
        rows = np.stack([batch.token_ids_T, batch.positions_T], axis=1)
        self._global[batch.global_kv.slot_mapping_T] = rows
        self._sliding[batch.sliding_kv.slot_mapping_T] = rows
        logits = {}
        for b in range(len(batch.query_start_B1) - 1):
            start, end = batch.query_start_B1[b : b + 2]
            positions = batch.positions_T[start:end]
            assert np.array_equal(positions, np.arange(positions[0], positions[0] + end - start))
            context = self._read(self._global, batch.global_kv, b, 0, int(positions[-1]))
            first = max(0, int(positions[0]) - self._window + 1)
            seen = self._read(self._sliding, batch.sliding_kv, b, first, int(positions[-1]))
            assert np.array_equal(seen, context[first:])
            assert np.array_equal(context[positions], batch.token_ids_T[start:end])
            for row in range(start, end):
                if row in batch.logits_rows_R:
                    logits[row] = context_logits(context[: batch.positions_T[row] + 1])
        stacked = [logits[row] for row in batch.logits_rows_R.tolist()]
        return torch.from_numpy(np.array(stacked, np.float32).reshape(-1, VOCAB_SIZE))

    def wait(self, timeout_s: float) -> None:
        self._woken.wait(timeout_s)
        self._woken.clear()

    def last_sign_at_s(self) -> float:
        return self.sign_at_s

    def wake(self) -> None:
        self._woken.set()

    def _note(self, batch: ForwardBatch) -> None:
        counts = np.diff(batch.query_start_B1)
        self.rows_per_step.append(int(counts.sum()))
        decodes = (counts == 1) & (batch.positions_T[batch.query_start_B1[:-1]] > 0)
        if decodes.any():
            prefill = int(counts[~decodes].sum())
            self.widest_prefill_beside_decode = max(self.widest_prefill_beside_decode, prefill)

    @staticmethod
    def _read(store: Int64, view: KvView, b: int, first: int, last: int) -> Int64:
        positions = np.arange(first, last + 1)
        blocks = view.block_tables_BM[b, positions // KV_BLOCK_SIZE].astype(np.int64)
        assert (blocks >= 0).all(), "a position that the row sees has no block"
        stored = store[blocks * KV_BLOCK_SIZE + positions % KV_BLOCK_SIZE]
        assert np.array_equal(stored[:, 1], positions), "a block holds another position"
        token_ids: Int64 = stored[:, 0]
        return token_ids


def undisturbed(request: GenerationRequest, context_limit: int) -> list[tuple[int, Sample]]:
    """What a request must give: (index, sample) of each token, computed without an engine."""
    seq = Sequence(request, arrival=0)
    samples: list[tuple[int, Sample]] = []
    sampler = Sampler()
    while seq.finish_reason(context_limit) is None:
        logits = torch.from_numpy(context_logits(seq.tokens_T))[None]
        sample = sampler.sample(logits, [seq])[0]
        samples.append((seq.num_outputs, sample))
        seq.append(sample.token_id)
    return samples


def outputs(events: list[TokenEvent], request: GenerationRequest) -> list[tuple[int, Sample]]:
    """The tokens of one request among many events, in the form of `undisturbed`."""
    return [
        (event.index, Sample(event.token_id, event.logprobs))
        for event in events
        if (event.request_id, event.choice) == request.key and event.token_id is not None
    ]


def finishes(events: list[TokenEvent], request: GenerationRequest) -> list[FinishReason]:
    """The ends of one request: exactly one if all is well."""
    return [
        event.finish
        for event in events
        if (event.request_id, event.choice) == request.key and event.finish is not None
    ]


def make_config(**changes: float) -> EngineConfig:
    sizes: dict[str, float] = {
        "num_global_blocks": 64,
        "num_sliding_blocks": 64,
        "sliding_window": 48,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "max_prefill_chunk": 32,
        "max_waiting": 64,
    }
    return EngineConfig(**(sizes | changes))  # type: ignore[arg-type]


def make_request(
    name: str = "r", prompt: tuple[int, ...] | int = 10, max_tokens: int = 8, **changes: object
) -> GenerationRequest:
    """A request of `prompt` (ids, or that many made up from the name)."""
    if isinstance(prompt, int):
        seed = sum(name.encode())
        prompt = tuple((seed * 7 + idx * idx * 3 + idx) % VOCAB_SIZE for idx in range(prompt))
    params = SamplingParams(
        max_tokens=max_tokens,
        **({"seed": 1, "temperature": 1.0, "num_logprobs": 2} | changes),  # type: ignore[arg-type]
    )
    return GenerationRequest(name, 0, prompt, params)


class Choice:
    """A choice for sampler tests: no sequence behind it."""

    def __init__(
        self,
        params: SamplingParams,
        choice: int = 0,
        num_outputs: int = 0,
        processors: tuple[LogitsProcessor, ...] = (),
    ) -> None:
        self.params, self.choice, self.num_outputs = params, choice, num_outputs
        self.prompt_ids: Int64 = np.zeros(0, np.int64)
        self.output_ids: Int64 = np.zeros(0, np.int64)
        self._processors = processors

    def active_processors(self) -> list[LogitsProcessor]:
        return list(self._processors)
