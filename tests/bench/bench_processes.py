"""What each process of `--mode local` holds, taken apart: PSS, weights, KV, and the rest.

   python -m tests.bench.bench_processes --model demo

PSS is the proportional set size: pages that processes share are divided between them. It is read
after a load of streams that run all at once, so that arenas and buffers have grown and KV has been
written. Weights are the checkpoint's bytes of what a process serves, KV is what is resident of the
pools. `ray` is all that Ray itself runs, stated apart; the limit of 0.25 GB for the rest is for
each process of ours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.model_config import AfmoeConfig
from experts.checkpoint import Checkpoint
from tests.bench.process_memory import ProcessMemory, pool_pss_bytes, table
from tests.bench.report import Figure, Machine, report
from tests.bench.serving_load import Plan, decode
from tests.support.server import pss_bytes, trinity_server
from trinity_serve.model.describe import describe
from trinity_serve.processes import descendants
from trinity_serve.synthetic import PRESETS, write_checkpoint

STREAMS = 16
OURS = {
    "ray::ExpertShard": "ExpertShard",
    "ray::ServeReplica:trinity:AttentionRank": "AttentionRank",
    "ray::ServeReplica:trinity:ExpertPool": "ExpertPool",
    "ray::ServeReplica:trinity:Ingress": "Ingress",
}


def measured(pid: int, weights: dict[str, int]) -> Iterator[ProcessMemory]:
    """Yield `pid`, each process of ours below it, and Ray's own as one.

    `weights` are their bytes by kind of process.
    """
    yield ProcessMemory("trinity serve", pss_bytes(pid))
    rays = 0
    for process in descendants(pid):
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_text()
            smaps = Path(f"/proc/{process.pid}/smaps").read_text()
        except OSError:
            continue
        kind = next((kind for start, kind in OURS.items() if title.startswith(start)), "")
        size = pss_bytes(process.pid)
        if kind:
            kv = pool_pss_bytes(smaps) if kind == "AttentionRank" else 0
            yield ProcessMemory(kind, size, weights.get(kind, 0), kv)
        else:
            rays += size
    yield ProcessMemory("ray", rays)


def weights_of(config: AfmoeConfig, num_shards: int) -> dict[str, int]:
    """Return the bytes of weights of a shard and of a rank."""
    described = describe(config, shard_counts=[num_shards])
    return {
        "ExpertShard": described.shards[0].num_bytes,
        "AttentionRank": described.rank_bytes,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print a table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args(arguments)
    machine, plan = Machine.here(), Plan(prompt_tokens=64, output_tokens=32)
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / options.model
        if not path.exists():
            write_checkpoint(options.model, path)
        served = ["--model", str(path), "--mode", "local", "--shards", str(options.shards)]
        with trinity_server(served) as server:
            decode(server.url, options.model, STREAMS, plan, 0)
            weights = weights_of(Checkpoint.open(str(path)).config, options.shards)
            rows = sorted(measured(server.process.pid, weights), key=lambda row: row.kind)
    sys.stderr.write("\n".join(table(rows)) + "\n")
    for row in rows:
        name = "pss_ray" if row.kind == "ray" else "memory_rest"
        figure = Figure(name, row.rest_bytes / 1e9, "GB", {"process": row.kind})
        report(machine, figure, model=options.model, shards=options.shards)


if __name__ == "__main__":
    main()
