"""Which files a token passes, found by running it: `python -m tests.architecture.hot_path`.

Three readings, widest last: the files on the stack when a shard calls its kernel; the files in
which a decode step runs anything; those that a streamed completion adds between HTTP and steps.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx

from tests.architecture.source import PACKAGES, ROOT
from tests.conftest import TINY_CONFIG
from tests.support.http import inline_server
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.synthetic import write_checkpoint

COMPLETION = {"prompt": [60, 61, 62], "max_tokens": 8, "ignore_eos": True, "stream": True}
KERNEL = "grouped_swiglu"
SHARD = ROOT / "experts" / "shard.py"


class Trace:
    """Files of the product that run while it is on."""

    def __init__(self) -> None:
        self.on = False
        self._names: set[str] = set()
        self._on_stack: set[str] = set()

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """A profile function of `sys`."""
        if not self.on or event != "call":
            return
        self._names.add(frame.f_code.co_filename)
        caller = frame.f_back
        if frame.f_code.co_name == KERNEL and caller and caller.f_code.co_filename == str(SHARD):
            walk: FrameType | None = frame
            while walk is not None:
                self._on_stack.add(walk.f_code.co_filename)
                walk = walk.f_back

    @property
    def ran(self) -> set[Path]:
        """Files of the product in which a function was called."""
        return _of_product(self._names)

    @property
    def above_kernel(self) -> set[Path]:
        """Files of the product on the stack when a shard called its kernel."""
        return _of_product(self._on_stack)


def _of_product(names: set[str]) -> set[Path]:
    paths = (Path(name) for name in names)
    inside = (path for path in paths if path.is_relative_to(ROOT))
    return {path for path in inside if path.relative_to(ROOT).parts[0] in PACKAGES}


@contextmanager
def tracing() -> Iterator[Trace]:
    """Trace this thread and those started inside; the trace is still off."""
    trace = Trace()
    threading.setprofile(trace.note)
    sys.setprofile(trace.note)
    try:
        yield trace
    finally:
        trace.on = False
        sys.setprofile(None)
        threading.setprofile(None)


def trace_a_step(checkpoint: Path) -> Trace:
    """Run a decode step over two shards in this process."""
    engine = open_serving(config_for(checkpoint, num_shards=2)).engine
    params = SamplingParams(max_tokens=8, seed=1, temperature=0.8, top_p=0.8, ignore_eos=True)
    engine.submit(GenerationRequest("r", 0, (60, 61, 62), params))
    for now_s in (0.0, 1.0):
        engine.step(now_s)
    with tracing() as trace:
        trace.on = True
        engine.step(2.0)
    return trace


def trace_a_request(checkpoint: Path) -> Trace:
    """Serve one streamed completion; its steps are in the trace too."""
    with tracing() as trace, inline_server(config_for(checkpoint, num_shards=2)) as url:
        httpx.get(f"{url}/ready", timeout=60.0).raise_for_status()
        trace.on = True
        httpx.post(f"{url}/v1/completions", json=COMPLETION, timeout=60.0).raise_for_status()
        trace.on = False
    return trace


def num_lines(files: set[Path]) -> int:
    """Return how many lines the files have."""
    return sum(len(path.read_text(encoding="utf8").splitlines()) for path in files)


def show(title: str, files: set[Path]) -> None:
    """Print the files with their lines."""
    print(f"{title}: {len(files)} files, {num_lines(files)} lines")
    for path in sorted(files):
        print(f"{num_lines({path}):6}  {path.relative_to(ROOT)}")


def main() -> None:
    """Trace both ways over a small checkpoint and print them."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(TINY_CONFIG, Path(folder) / "checkpoint")
        step, request = trace_a_step(checkpoint), trace_a_request(checkpoint)
    show("On the stack from the step to the expert kernel", step.above_kernel)
    show("All that a decode step runs", step.ran)
    show("What HTTP adds to that", request.ran - step.ran)


if __name__ == "__main__":
    main()
