"""Four Ray nodes on this machine: `python -m tests.integration.ray_cluster DASHBOARD_PORT`.

A head that computes nothing, one node labelled for shards and two for ranks. Prints the nodes' ids
and the address on lines of their own and ends all of it on SIGINT.
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
    for pool in ("experts", "attention", "attention"):
        node = cluster.add_node(num_cpus=8, labels={"pool": pool}, object_store_memory=100_000_000)
        print(f"NODE {pool} {node.node_id}")
    cluster.wait_for_nodes()
    print(f"READY {cluster.address}", flush=True)
    signal.sigwait(signals)

    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
