"""Run the real Ray application: `python -m tests.integration.ray_real_server ARGS`.

ARGS is the configuration as JSON, for keys that `trinity serve` has no option for. Prints the
endpoint on a line of its own once it is ready.
"""

from __future__ import annotations

import json
import sys

from trinity_serve.app import serve_on_ray
from trinity_serve.config import parse_serve_args


def main() -> None:
    """Serve until SIGINT."""

    def on_ready(endpoint: str) -> None:
        print(f"READY {endpoint}", flush=True)

    serve_on_ray(parse_serve_args(json.loads(sys.argv[1])), on_ready=on_ready)


if __name__ == "__main__":
    main()
