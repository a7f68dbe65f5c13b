"""``python -m experts``: one expert shard as a process.

Progress goes to stderr; one JSON line on stdout says where it serves. SIGTERM and SIGINT end it
with exit code 0, an input that is refused with 2.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from cluster.errors import TrinityError
from cluster.tls import TlsFiles
from cluster.types import ShardSlice
from experts.config import ShardConfig
from experts.process import Announcement, run_shard

EXIT_REFUSED = 2
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a shard until it is told to end; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.die_with_parent:
        _die_with_parent(options.die_with_parent)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        config = _config(options)
        with tqdm(unit="B", unit_scale=True, desc=f"shard {options.shard}", file=sys.stderr) as bar:

            def progress(done_bytes: int, total_bytes: int) -> None:
                bar.total = total_bytes
                bar.update(done_bytes - bar.n)
                if stopping.is_set():
                    raise KeyboardInterrupt

            run_shard(config, stopping, _announce, progress)
    except KeyboardInterrupt:
        return 0
    except (TrinityError, OSError) as error:
        print(f"experts: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experts", description="Serve one expert shard."
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument(
        "--shard", type=_slice, default=ShardSlice(0, 1), help="INDEX/COUNT, from 0; e.g. 0/4"
    )
    parser.add_argument(
        "--listen",
        action="append",
        required=True,
        help="unix:/folder/socket or grpc://host:port; may be given several times",
    )
    parser.add_argument("--kernels", choices=("auto", "reference", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--token-file", help="file with the token that ranks must present")
    for part in ("cert", "key", "ca"):
        parser.add_argument(f"--tls-{part}", help=f"PEM file with the {part}, for grpc")
    parser.add_argument(
        "--die-with-parent",
        type=int,
        metavar="PID",
        help="end when this process, which must be the parent, ends",
    )
    return parser


def _slice(text: str) -> ShardSlice:
    try:
        return ShardSlice.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _config(options: argparse.Namespace) -> ShardConfig:
    tls_files = (options.tls_cert, options.tls_key, options.tls_ca)
    if any(tls_files) and not all(tls_files):
        raise OSError("--tls-cert, --tls-key and --tls-ca are given together or not at all")
    return ShardConfig(
        model=options.model,
        part=options.shard,
        listen=tuple(options.listen),
        kernels=options.kernels,
        dtype=options.dtype,
        # A file, because what stands on a command line can be read by every user of the host.
        token=Path(options.token_file).read_text().strip() if options.token_file else "",
        num_threads=options.threads,
        tls=TlsFiles(*tls_files) if all(tls_files) else None,
    )


def _announce(what: Announcement) -> None:
    print(json.dumps(asdict(what)), flush=True)


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
