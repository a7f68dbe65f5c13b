"""Three Ray nodes on this machine: `python -m tests.integration.ray_cluster DASHBOARD_PORT`.

A head that computes nothing, one node labelled for ranks and one for shards. Prints the address on
a line of its own and ends all of it on SIGINT.
"""

from __future__ import annotations

import signal
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Run until SIGINT or SIGTERM."""

    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_port": int(sys.argv[1]),
        "object_store_memory": 100_000_000,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for pool in ("attention", "experts"):
        cluster.add_node(num_cpus=8, labels={"pool": pool}, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    print(f"READY {cluster.address}", flush=True)
    signal.sigwait(signals)

    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
