"""Faults hit what they are pointed at, in the tree they are given, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.chaos.control_service import RestartControlService
from tests.chaos.faults import Command, Freeze, KeepAway, Kill, NoVictimError, Throttle, Victims
from tests.chaos.footprint import Footprint, files_return_to, growths
from tests.chaos.target import CONTROL_SERVICE
from trinity_serve.processes import is_alive

WORKER = "import time; time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
for name in ("worker-a", "worker-b"):
    subprocess.Popen([sys.executable, "-c", {WORKER!r}, name])
time.sleep(60)
"""


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    end_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.005)
    return condition()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def has_state(pid: int, state: str) -> bool:
    return state_of(pid) == state


@pytest.fixture
def tree() -> Iterator[int]:
    """A process with two workers below it, in a session of its own."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True)
    try:
        assert eventually(lambda: len(Victims(parent.pid, "worker-[ab]").find()) == 2)
        yield parent.pid
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


async def test_a_kill_ends_one_process_that_matches_and_no_other(tree: int) -> None:
    before = Victims(tree, "worker").find()
    [victim] = Victims(tree, "worker-b").find()
    said = await Kill("kill", Victims(tree, "worker-b")).strike(Random(1))
    assert said == f"killed [{victim.pid}]"
    left = [each for each in before if each != victim]
    assert eventually(lambda: Victims(tree, "worker").find() == left)


async def test_two_are_killed_at_once_or_none(tree: int) -> None:
    with pytest.raises(NoVictimError, match=r"2 of 2 processes .* match 'worker', 3 are needed"):
        await Kill("kill", Victims(tree, "worker"), count=3).strike(Random(1))
    assert len(Victims(tree, "worker").find()) == 2
    await Kill("kill", Victims(tree, "worker"), count=2).strike(Random(1))
    assert eventually(lambda: Victims(tree, "worker").find() == [])


async def test_processes_outside_the_tree_are_never_victims(tree: int) -> None:
    [inside] = Victims(tree, "worker-a").find()
    with pytest.raises(NoVictimError):
        await Kill("kill", Victims(inside.pid, "worker")).strike(Random(1))
    assert Victims(tree, "python").find() == Victims(tree, "worker").find()


async def test_a_frozen_process_stands_still_and_goes_on(tree: int) -> None:
    [victim] = Victims(tree, "worker-a").find()
    striking = asyncio.create_task(Freeze("f", Victims(tree, "worker-a"), 0.2).strike(Random(1)))
    assert await asyncio.to_thread(eventually, lambda: state_of(victim.pid) == "T")
    assert await striking == f"stopped {victim.pid} for 0.2 s"
    assert eventually(lambda: state_of(victim.pid) == "S")


async def test_a_frozen_process_goes_on_also_when_the_run_is_broken_off(tree: int) -> None:
    [victim] = Victims(tree, "worker-a").find()
    striking = asyncio.create_task(Freeze("f", Victims(tree, "worker-a"), 60.0).strike(Random(1)))
    assert await asyncio.to_thread(eventually, lambda: state_of(victim.pid) == "T")
    striking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await striking
    assert eventually(lambda: state_of(victim.pid) == "S")


async def test_the_newest_are_chosen_where_that_is_asked_for(tree: int) -> None:
    ages = {each: each.started for each in Victims(tree, "worker").find()}
    chosen = Victims(tree, "worker", newest=True).choose(Random(1), 1)
    assert ages[chosen[0]] == max(ages.values())


BREEDER = f"""
import subprocess, sys, time
while True:
    subprocess.run([sys.executable, "-c", {WORKER!r}, "bred"])
"""


async def test_what_takes_the_place_of_the_killed_stands_still_until_the_end() -> None:
    parent = subprocess.Popen([sys.executable, "-c", BREEDER], start_new_session=True)
    bred = Victims(parent.pid, "bred")
    try:
        assert await asyncio.to_thread(eventually, lambda: len(bred.find()) == 1)
        [first] = bred.find()
        away = asyncio.create_task(KeepAway("away", bred, 1, for_s=60.0).strike(Random(1)))

        def second_stands_still() -> bool:
            return [state_of(each.pid) for each in bred.find() if each != first] == ["T"]

        assert await asyncio.to_thread(eventually, second_stands_still)
        away.cancel()
        with pytest.raises(asyncio.CancelledError):
            await away
        [second] = bred.find()
        assert await asyncio.to_thread(eventually, lambda: state_of(second.pid) == "S")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


async def test_a_throttled_process_is_stopped_again_and_again_and_goes_on(tree: int) -> None:
    [victim] = Victims(tree, "worker-a").find()
    fault = Throttle("slow", Victims(tree, "worker-a"), for_s=60, stopped_s=0.1, running_s=0.1)
    striking = asyncio.create_task(fault.strike(Random(1)))
    for state in ("T", "S", "T"):
        shown = partial(has_state, victim.pid, state)
        assert await asyncio.to_thread(eventually, shown)
    striking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await striking
    assert eventually(lambda: state_of(victim.pid) == "S")


def test_what_grew_after_the_first_quarter_is_told() -> None:
    flat = [Footprint(5, 1000 + number % 7, 100, 20) for number in range(40)]
    assert growths(flat) == []
    warming = [replace(each, open_files=10) for each in flat[:10]] + flat[10:]
    assert growths(warming) == []
    leaking = [replace(each, open_files=100 + n) for n, each in enumerate(flat)]
    assert growths(leaking) == ["open_files grew from 114 to 134"]


CLUSTER = f"""
import subprocess, sys, time
sleep = [sys.executable, "-c", {WORKER!r}]
subprocess.Popen([*sleep, "/gcs_server", "--gcs_server_port=0"])
subprocess.Popen([*sleep, "raylet", "--gcs-address=127.0.0.1:4711"])
time.sleep(60)
"""


async def test_the_control_service_comes_back_where_the_others_look_for_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", CLUSTER], start_new_session=True)
    service = Victims(parent.pid, CONTROL_SERVICE)
    away = RestartControlService("away", service, away_s=(0.0, 0.1))
    try:
        assert await asyncio.to_thread(eventually, lambda: len(service.find()) == 1)
        looking = Victims(parent.pid, "--gcs-address=")
        assert await asyncio.to_thread(eventually, lambda: len(looking.find()) == 1)
        for _ in range(2):
            await away.strike(Random(1))
            [started] = Victims(os.getpid(), "--gcs_server_port=4711").find()
            assert await asyncio.to_thread(eventually, lambda: service.find() == [])
        away.close()
        assert not is_alive(started)
    finally:
        away.close()
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


async def test_a_command_must_succeed_and_in_time() -> None:
    good = Command("scale", (sys.executable, "-c", ""))
    assert (await good.strike(Random(1))).startswith("ran ")
    bad = Command("scale", (sys.executable, "-c", "raise SystemExit('no such shard')"))
    with pytest.raises(RuntimeError, match="no such shard"):
        await bad.strike(Random(1))
    with pytest.raises(RuntimeError, match=r"more than 0\.1 s"):
        await Command("scale", (sys.executable, "-c", WORKER), timeout_s=0.1).strike(Random(1))


async def test_open_files_are_counted_over_the_tree_until_they_are_back(
    tree: int, tmp_path: Path
) -> None:
    assert Footprint.of(tree).processes == 3
    assert Footprint.of(tree).threads == 3
    assert Footprint.of(tree).resident_bytes > 3 * 2**20
    own = os.getpid()
    baseline = replace(now := Footprint.of(own), open_files=now.open_files + 10)
    with ExitStack() as held:
        for number in range(50):  # far above what the test's own process opens and closes meanwhile
            held.enter_context((tmp_path / f"held-{number}").open("w"))
        assert await files_return_to(baseline, own, within_s=0.1) is None
    assert await files_return_to(baseline, own, within_s=5.0) is not None
