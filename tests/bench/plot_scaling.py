"""Draw what `bench_scaling` printed.

    python -m tests.bench.plot_scaling scaling.jsonl docs/scaling.png

Needs matplotlib (the extra `bench`), which nothing else here does.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

AXES = ("context", "streams", "shards")
TITLES = {
    "context": "one stream, inline",
    "streams": "64-token prompts, inline",
    "shards": "16 streams, one process per shard",
}
Points = list[tuple[int, float]]


def points_by_axis(lines: Sequence[str]) -> Mapping[str, Points]:
    """Return (position, ms per token) by axis, ascending."""
    points: dict[str, Points] = {axis: [] for axis in AXES}
    for line in lines:
        figure = json.loads(line)
        if figure["bench"] == "token_cost":
            axis = figure["axis"]
            points[axis].append((figure[axis], figure["value"]))
    return {axis: sorted(found) for axis, found in points.items() if found}


def draw(points: Mapping[str, Points], note: str, target: Path) -> None:
    """Write one panel per axis to a PNG file."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, panels = pyplot.subplots(1, len(points), figsize=(4 * len(points), 3.2), squeeze=False)
    for panel, (axis, found) in zip(panels[0], points.items(), strict=True):
        positions, costs = zip(*found, strict=True)
        panel.plot(positions, costs, marker="o")
        panel.set_xscale("log", base=2)
        panel.set_xticks(positions, [f"{p // 1024}K" if p >= 1024 else str(p) for p in positions])
        panel.set_ylim(bottom=0)
        panel.set_xlabel(axis)
        panel.set_title(TITLES[axis], fontsize=9)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms per token")
    figure.text(0.99, 0.005, note, ha="right", fontsize=6)
    figure.tight_layout()
    figure.savefig(target, dpi=140)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    lines = options.figures.read_text(encoding="utf8").splitlines()
    last = json.loads(lines[-1])
    note = f"{last['commit']}, {last['date']}, {last['cores']} × {last['cpu']}"
    draw(points_by_axis(lines), note, options.target)


if __name__ == "__main__":
    main()
