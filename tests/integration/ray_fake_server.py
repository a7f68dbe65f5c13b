"""Run the Ray application with fake insides: `python -m tests.integration.ray_fake_server ARGS`.

ARGS is the configuration as JSON. Prints the endpoint on a line of its own once it is ready.
"""

from __future__ import annotations

import json
import sys
from functools import partial

from tests.integration.ray_fakes import fake_parts
from trinity_serve.app import assemble
from trinity_serve.config import parse_serve_args
from trinity_serve.local_ray import run_application


def main() -> None:
    """Serve until SIGINT."""
    config = parse_serve_args(json.loads(sys.argv[1]))

    def on_ready(endpoint: str) -> None:
        print(f"READY {endpoint}", flush=True)

    parts = fake_parts(config)
    run_application(config, partial(assemble, parts=parts), on_ready, parts.launcher)


if __name__ == "__main__":
    main()
