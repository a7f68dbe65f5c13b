"""Which process of `--mode local` takes how much memory (proportional set size), and Ray's share.

   python -m tests.bench.bench_processes --model demo

`pss` of ours is per kind of process, the mean of its processes; `pss_ray` is what Ray itself runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.bench.report import Figure, Machine, report
from tests.support.server import pss_bytes, trinity_server
from trinity_serve.processes import descendants
from trinity_serve.synthetic import PRESETS, write_checkpoint

OURS = {
    "ray::ExpertShard": "ExpertShard",
    "ray::ServeReplica:trinity:AttentionRank": "AttentionRank",
    "ray::ServeReplica:trinity:ExpertPool": "ExpertPool",
    "ray::ServeReplica:trinity:Ingress": "Ingress",
}


def pss_by_kind(pid: int) -> dict[str, list[int]]:
    """Return the bytes of each process below and of `pid`, by kind; Ray's own under ``ray``."""
    sizes: dict[str, list[int]] = defaultdict(list)
    sizes["trinity serve"].append(pss_bytes(pid))
    for process in descendants(pid):
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_text()
        except OSError:
            continue
        kinds = [kind for start, kind in OURS.items() if title.startswith(start)]
        sizes[kinds[0] if kinds else "ray"].append(pss_bytes(process.pid))
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", choices=sorted(PRESETS))
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args(arguments)
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(options.model, Path(folder) / options.model)
        served = ["--model", str(path), "--mode", "local", "--shards", str(options.shards)]
        with trinity_server(served) as server:
            for kind, sizes in pss_by_kind(server.process.pid).items():
                what: dict[str, str | int] = {"model": options.model, "processes": len(sizes)}
                if kind == "ray":
                    report(machine, Figure("pss_ray", sum(sizes) / 1e9, "GB"), **what)
                else:
                    mean_gb = statistics.mean(sizes) / 1e9
                    report(machine, Figure("pss", mean_gb, "GB"), process=kind, **what)


if __name__ == "__main__":
    main()
