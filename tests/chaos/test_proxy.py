"""Each fault of the proxy, between a rank and real shards: no row is lost, no bit is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.metrics import Metric
from cluster.model_config import AfmoeConfig
from router.config import DispatchConfig
from tests.chaos.proxy import BYTE_FAULTS, CALM, Fault, FaultProxy, Faults
from tests.support.loop_shards import LoopRank, loop_rank, loop_shard

STEPS = 6
CONFIG = DispatchConfig(ping_every_s=0.1, dead_after_s=0.5, coverage_grace_s=20.0)
CASES = [("unix", fault) for fault in Fault] + [("grpc", fault) for fault in sorted(BYTE_FAULTS)]


def run(rank: LoopRank, steps: int = STEPS) -> list[Tensor]:
    return [rows for seed in range(steps) for rows in rank.step(num_tokens=3, seed=seed)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_config: AfmoeConfig) -> list[Tensor]:
    """What every run must give, whatever happens on its way."""
    folder = tmp_path_factory.mktemp("u")
    folder.chmod(0o700)
    with (
        loop_shard(tiny_config, 0, f"unix:{folder}/0") as address,
        loop_rank(tiny_config, [address], CONFIG) as rank,
    ):
        return run(rank)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def proxied(
    stack: ExitStack, config: AfmoeConfig, folder: Path, scheme: str, faults: Faults
) -> tuple[LoopRank, list[FaultProxy]]:
    """Start two shards with every expert, a proxy before each, and a rank behind the proxies.

    The first proxy does the faults: NaN twice on two shards would rightly end the request."""
    proxies = []
    for shard in range(2):
        unix = scheme == "unix"
        bind = f"unix:{folder}/s{shard}" if unix else "grpc://127.0.0.1:0"
        listen = f"unix:{folder}/p{shard}" if unix else "grpc://127.0.0.1:0"
        address = stack.enter_context(loop_shard(config, shard, bind))
        proxies.append(stack.enter_context(FaultProxy(listen, address, CALM, seed=shard)))
    addresses = [proxy.address for proxy in proxies]
    rank = stack.enter_context(loop_rank(config, addresses, CONFIG))
    proxies[0].faults = faults
    return rank, proxies


@pytest.mark.parametrize(("scheme", "fault"), CASES)
def test_a_fault_on_the_way_changes_no_bit_and_loses_no_row(
    stack: ExitStack,
    tiny_config: AfmoeConfig,
    folder: Path,
    undisturbed: list[Tensor],
    scheme: str,
    fault: Fault,
) -> None:
    faults = Faults((fault,), share=0.3, most=1 if fault is Fault.NAN else 3, delay_s=0.1)
    rank, proxies = proxied(stack, tiny_config, folder, scheme, faults)
    found = run(rank)
    assert all(torch.equal(*pair) for pair in zip(found, undisturbed, strict=True))
    assert sum(proxy.injected[fault] for proxy in proxies) > 0
    assert rank.dispatcher.num_open == 0


def test_faults_of_every_kind_in_one_run_change_no_bit(
    stack: ExitStack, tiny_config: AfmoeConfig, folder: Path, undisturbed: list[Tensor]
) -> None:
    others = tuple(fault for fault in Fault if fault is not Fault.NAN)
    faults = Faults(others, share=0.2, most=6, delay_s=0.05)
    rank, proxies = proxied(stack, tiny_config, folder, "unix", faults)
    found = run(rank)
    assert all(torch.equal(*pair) for pair in zip(found, undisturbed, strict=True))
    assert sum(proxy.injected.total() for proxy in proxies) > 0


def test_what_passes_undisturbed_is_not_asked_for_twice(
    stack: ExitStack, tiny_config: AfmoeConfig, folder: Path, undisturbed: list[Tensor]
) -> None:
    rank, proxies = proxied(stack, tiny_config, folder, "unix", CALM)
    found = run(rank)
    assert all(torch.equal(*pair) for pair in zip(found, undisturbed, strict=True))
    assert rank.metrics[Metric.DISPATCH_RETRIES] == rank.metrics[Metric.SHARDS_LOST] == 0
    assert all(not proxy.injected for proxy in proxies)


def test_the_same_seed_does_the_same_faults(folder: Path, tiny_config: AfmoeConfig) -> None:
    seen = []
    for turn in range(2):
        with ExitStack() as stack:
            home = folder / str(turn)
            home.mkdir(mode=0o700)
            faults = Faults((Fault.DUPLICATE, Fault.REORDER), share=0.5)
            rank, proxies = proxied(stack, tiny_config, home, "unix", faults)
            run(rank, steps=2)
            seen.append([dict(proxy.injected) for proxy in proxies])
    assert seen[0] == seen[1]


def test_a_fault_that_needs_frames_is_refused_on_tcp() -> None:
    with pytest.raises(ValueError, match="on TCP only"):
        FaultProxy("grpc://127.0.0.1:0", "grpc://127.0.0.1:1", Faults((Fault.NAN,)), seed=0)
