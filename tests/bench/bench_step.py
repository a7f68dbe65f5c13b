"""What a decode step costs beside weights, KV and kernels, by phase, in microseconds.

    python -m tests.bench.bench_step --model small --streams 32

Engine, shard and text side in this process and on one thread, without HTTP: a turn of the engine's
thread, then its events become text and SSE chunks, as in mode inline. Each phase is counted without
those inside it; what runs in compiled code is a phase of its own, so that the rest is Python's.
A table goes to stderr; one JSON line per figure, as means over the steps, to stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np

from tests.bench.bench_serving import checkpoints
from tests.bench.report import Figure, Machine, report
from tests.bench.spans import NATIVE, Spans
from tests.support.serving import open_serving
from trinity_serve.api.choice import Choice, ChoiceDecoder, Delta
from trinity_serve.api.completions import CompletionForm, CompletionReply
from trinity_serve.api.reply import ReplyHead
from trinity_serve.api.sampling import TextOptions
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import GenerationRequest, SamplingParams, TokenEvent
from trinity_serve.engine.thread import EngineThread
from trinity_serve.rank import open_sampler
from trinity_serve.synthetic import PRESETS
from trinity_serve.threads import num_cores

WARM_UP_STEPS = 20
PROMPT_TOKENS = 64
PHASES = {
    "turn": "the engine thread's own: inbox, striking off, snapshot's bookkeeping",
    "step": "events, ends, KV bookkeeping",
    "schedule": "which rows",
    "build_batch": "their arrays",
    "forward": "the pass's own: order of layers and micro-batches",
    "segments": "what surrounds the kernels' calls: checks, buffers, structures",
    "dispatch": "plan and frames",
    "collect": "links, the shard's loop, rows back",
    "sample": "Python around the draw",
    "stats": "the snapshot",
    "detokenise": "tokens to text, stop strings",
    "emit": "text to SSE chunks",
}
FORWARD = ("forward", "segments", "dispatch", "collect")
SEGMENTS = ("start", "attention", "dense", "route", "shared_expert", "finish_moe", "logits")
LIBRARIES = ("experts.kernels.cpu.library", "trinity_serve.model.kernels.cpu.library")
SAMPLING = f"{NATIVE}ts_vocab_"


class Stage:
    """An engine of so many streams whose parts are timed, and the text side behind it."""

    def __init__(self, config: ServeConfig, spans: Spans, streams: int, tokens: int) -> None:
        serving = open_serving(config)
        self._spans = spans
        engine = Engine(serving.runner, serving.engine.config, open_sampler(config))
        serving.runner.forward = spans.timed("forward", serving.runner.forward)  # type: ignore[method-assign]
        model = serving.runner.model
        parts: list[tuple[object, str, str]] = [
            *((model._segments, name, "segments") for name in SEGMENTS),
            *((model._dispatch, name, name) for name in ("dispatch", "collect")),
        ]
        for owner, method, name in (
            *parts,
            (engine, "step", "step"),
            (engine, "stats", "stats"),
            (engine._scheduler, "schedule", "schedule"),
            (engine._sampler, "sample", "sample"),
        ):
            setattr(owner, method, spans.timed(name, getattr(owner, method)))
        self._arrived: list[TokenEvent] = []
        self._thread = EngineThread(engine, self._arrived.extend)
        self._turn = spans.timed("turn", self._thread._turn)
        self._open_streams(Path(config.model.path), serving.runner.vocab_size, streams, tokens)
        self._detokenise = spans.timed("detokenise", self._texts)
        self._emit = spans.timed("emit", self._chunks)

    def _open_streams(self, path: Path, vocab_size: int, streams: int, tokens: int) -> None:
        tokenizer, rng = TextTokenizer.from_folder(path), np.random.default_rng(0)
        head = ReplyHead("cmpl-0", 0, path.name, None, tokenizer)
        self._reply = CompletionReply(head, [[]] * streams, CompletionForm())
        self._decoders: dict[str, ChoiceDecoder] = {}
        for number in range(streams):
            ids = tuple(rng.integers(13, vocab_size, PROMPT_TOKENS).tolist())
            params = SamplingParams(max_tokens=tokens, seed=number, ignore_eos=True)
            request = GenerationRequest(f"r{number}", 0, ids, params)
            self._decoders[request.request_id] = ChoiceDecoder(
                Choice(number, request, TextOptions()), tokenizer
            )
            self._thread.submit(request)

    def step(self) -> int:
        """Make one turn and hand its events on; return the bytes for clients."""
        self._turn()
        return self._emit(self._detokenise())

    def _texts(self) -> list[Delta]:
        events, self._arrived[:] = list(self._arrived), []
        return [
            delta
            for event in events
            for delta in self._decoders[event.request_id].push_all([event])
        ]

    def _chunks(self, deltas: list[Delta]) -> int:
        return sum(len(self._reply.chunk(delta, b"")) for delta in deltas)


def measure(path: Path, streams: int, steps: int) -> dict[str, float]:
    """Return the mean microseconds of a decode step by phase and compiled function."""
    spans = Spans()
    config = parse_serve_args(
        {
            "mode": "inline",
            "model": {"path": str(path)},
            "experts": {"num_shards": 1},
            "attention": {"kv_memory_bytes": "1GiB", "max_num_seqs": streams},
        }
    )
    with ExitStack() as stack:
        for library in LIBRARIES:
            stack.enter_context(mock.patch(f"{library}.open_library", spans.open_library))
        build_batch = "trinity_serve.engine.engine.build_batch"
        module = sys.modules["trinity_serve.engine.engine"]
        timed = spans.timed("build_batch", module.build_batch)
        stack.enter_context(mock.patch(build_batch, timed))
        stage = Stage(config, spans, streams, WARM_UP_STEPS + steps + PROMPT_TOKENS)
        for _ in range(WARM_UP_STEPS):
            stage.step()
        spans.clear()
        for _ in range(steps):
            stage.step()
    return {name: spans.own_ns[name] / steps / 1000 for name in spans.own_ns}


def sums(phases: dict[str, float]) -> dict[str, float]:
    """Return the step, what of it is neither weights nor KV nor kernels, and the engine's share.

    The engine's part is all but the forward pass, the compiled draw included.
    """
    step = sum(phases.values())
    native = sum(took for name, took in phases.items() if name.startswith(NATIVE))
    drawn = sum(took for name, took in phases.items() if name.startswith(SAMPLING))
    forward = sum(phases[name] for name in FORWARD) + native - drawn
    return {"step": step, "not_kernels": step - native, "engine": step - forward}


def figures(phases: dict[str, float], streams: int) -> Iterator[Figure]:
    """Yield one figure per phase, and the sums."""
    for name in PHASES:
        yield Figure("step_phase", phases[name], "us", {"phase": name, "streams": streams})
    total = sums(phases)
    for name, took in total.items():
        yield Figure(f"step_{name}_us", took, "us", {"streams": streams})
    yield Figure(
        "step_engine_share", total["engine"] / total["step"], "ratio", {"streams": streams}
    )


def table(phases: dict[str, float]) -> str:
    """Return phases and compiled functions with their share, the sums last."""
    total = sums(phases)
    native = sorted((name for name in phases if name.startswith(NATIVE)), key=lambda n: -phases[n])
    rows = [(name, phases[name], PHASES[name]) for name in PHASES]
    rows += [(name, phases[name], "") for name in native]
    rows += [
        ("engine", total["engine"], "all but the forward pass"),
        ("not kernels", total["not_kernels"], "neither weights nor KV nor kernels"),
        ("step", total["step"], ""),
    ]
    return "\n".join(
        f"{name:26}{took:10.1f} us {100 * took / total['step']:6.2f} %  {what}".rstrip()
        for name, took, what in rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, nargs="+", default=[32])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    machine = Machine.here()
    with checkpoints([options.model], options.folder) as [path]:
        for streams in options.streams:
            phases = measure(path, streams, options.steps)
            sys.stderr.write(table(phases) + "\n")
            for figure in figures(phases, streams):
                report(machine, figure, model=options.model, threads=num_cores())


if __name__ == "__main__":
    main()
