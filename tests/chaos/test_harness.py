"""The harness finds what it is there to find: on a fake endpoint that fails on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest

from tests.chaos.clients import VanishingClients
from tests.chaos.compound import AtMoment, InTurn, Meanwhile
from tests.chaos.faults import NOTHING_EXCUSED, Fault, NoVictimError
from tests.chaos.harness import (
    ChaosResult,
    Load,
    Schedule,
    crowded,
    disturbed,
    golden_differences,
    undisturbed,
)
from tests.chaos.outcome import FailureKind, Outcome, difference, run_request
from tests.chaos.run import compared
from tests.chaos.table import complaints, table
from tests.chaos.workload import KINDS, mixed_requests
from tests.fakes.endpoint import NORMAL, Behaviour, FakeEndpoint, fake_endpoint

REQUESTS = [r for r in mixed_requests("m", 12, seed=5) if r.streams]
QUICK = Schedule(seed=3, num_faults=4, pause_s=(0.01, 0.03), settle_s=2.0)


@dataclass
class Switch:
    """A fault of the fake endpoint: for the next few requests it behaves in another way."""

    endpoint: FakeEndpoint
    behaviour: Behaviour
    name: str = "switch"
    excused: frozenset[FailureKind] = NOTHING_EXCUSED
    strikes: int = 0

    async def strike(self, random: Random) -> str:
        self.strikes += 1
        begin = len(self.endpoint.bodies)

        def behave(number: int) -> Behaviour:
            return self.behaviour if begin <= number < begin + 3 else NORMAL

        self.endpoint.behaviour = behave
        return f"requests {begin} to {begin + 2}"


async def chaos(
    endpoint: FakeEndpoint, faults: Sequence[Fault], schedule: Schedule = QUICK
) -> tuple[ChaosResult, ChaosResult]:
    load = Load(endpoint.url, REQUESTS, 4, request_deadline_s=5.0, pause_after_failure_s=0.1)
    golden = await undisturbed(load)
    return await crowded(load, golden), await disturbed(load, golden, faults, schedule)


async def test_nothing_is_found_where_nothing_happens() -> None:
    async with fake_endpoint() as endpoint:
        fault = Switch(endpoint, NORMAL)
        crowd, found = await chaos(endpoint, [fault])
    assert len(crowd.outcomes) == len(REQUESTS)
    assert fault.strikes == len(found.events) == 4
    assert len(found.outcomes) >= 12
    assert complaints(crowd) == complaints(found) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(status=503),
        Behaviour(cut_after=2),
        Behaviour(error_after=2),
    ],
)
async def test_a_request_that_fails_is_found(behaviour: Behaviour) -> None:
    async with fake_endpoint() as endpoint:
        _, found = await chaos(endpoint, [Switch(endpoint, behaviour)])
    assert 1 <= len(found.failed()) <= 12
    assert found.unequal() == []
    assert complaints(found)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (Behaviour(change_token=3), "token_ids differ at 3"),
        (Behaviour(change_logprob=5), "logprobs"),
    ],
)
async def test_one_changed_token_or_logprob_bit_is_found(behaviour: Behaviour, said: str) -> None:
    async with fake_endpoint() as endpoint:
        _, found = await chaos(endpoint, [Switch(endpoint, behaviour)])
    assert found.failed() == []
    assert found.unequal()
    assert all(said in how for _, how in found.unequal())


@pytest.mark.parametrize("behaviour", [Behaviour(cut_after=2), Behaviour(status=503)])
async def test_only_the_kind_of_failure_that_a_fault_brings_is_excused(
    behaviour: Behaviour,
) -> None:
    async with fake_endpoint() as endpoint:
        cutting = Switch(endpoint, behaviour, excused=frozenset({"broken"}))
        _, found = await chaos(endpoint, [cutting])
    excused, failed = found.excused(), found.failed()
    assert bool(excused) is (behaviour.status == 200)
    assert bool(failed) is (behaviour.status == 503)


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (Behaviour(status=503), "refused"),
        (Behaviour(status=503, code="coverage_lost"), "unavailable"),
        (Behaviour(status=503, code="overloaded"), "refused"),
        (Behaviour(status=500, code="coverage_lost"), "refused"),
        (Behaviour(error_after=2, code="coverage_lost"), "unavailable"),
        (Behaviour(error_after=2), "error"),
    ],
)
async def test_only_a_typed_refusal_says_that_it_cannot_serve_for_now(
    behaviour: Behaviour, kind: FailureKind
) -> None:
    failing = FakeEndpoint(behaviour=lambda _: behaviour)
    async with fake_endpoint(failing) as endpoint:
        outcome = await run_request(endpoint.url, REQUESTS[0], 5.0)
    assert outcome.failure is not None
    assert outcome.failure.kind == kind


async def test_other_undisturbed_outputs_differ_where_one_bit_does() -> None:
    async with fake_endpoint() as endpoint:
        golden = await undisturbed(Load(endpoint.url, REQUESTS))
        again = await undisturbed(Load(endpoint.url, REQUESTS))
        endpoint.behaviour = lambda number: Behaviour(change_logprob=5)
        other = await undisturbed(Load(endpoint.url, REQUESTS))
    assert golden_differences(golden, again, "over grpc") == []
    differences = golden_differences(golden, other, "over grpc")
    assert len(differences) == len(REQUESTS)
    assert differences[0].startswith(f"{REQUESTS[0].name} over grpc: choice 0: logprobs")
    assert compared(golden, {"grpc": other}) == differences[:10]
    assert compared(golden, {"grpc": again}) == []
    assert compared(golden, {"grpc": {}}) == ["no undisturbed outputs over grpc"]


async def test_a_stall_shows_as_the_longest_gap_of_the_event() -> None:
    async with fake_endpoint() as endpoint:
        stall = Switch(endpoint, Behaviour(pause_after=4, pause_s=0.3), name="stall")
        crowd, found = await chaos(endpoint, [stall])
    assert max(o.longest_gap_s() for o in crowd.outcomes) < 0.3
    assert max(o.longest_gap_s() for o in found.outcomes) >= 0.29
    lines = table(crowd, found).splitlines()
    assert lines[2].startswith(f"| none | – | {len(REQUESTS)} | 0 | 0 | 0 |")
    assert lines[3].startswith("| stall | 4 |")
    assert lines[4].startswith(f"| all | 4 | {len(found.outcomes)} | 0 | 0 | 0 |")
    assert float(lines[4].split("|")[-2]) >= 290


def test_a_gap_counts_for_the_event_in_whose_time_its_middle_lies() -> None:
    outcome = Outcome(REQUESTS[0], 0.0, chunk_times_s=[0.0, 1.0, 4.0, 4.5])
    assert outcome.longest_gap_s() == 3.0
    assert outcome.longest_gap_s(0.0, 2.0) == 1.0
    assert outcome.longest_gap_s(2.0, 3.0) == 3.0
    assert outcome.longest_gap_s(5.0) == 0.0


async def test_the_same_seed_strikes_the_same_way() -> None:
    async with fake_endpoint() as endpoint:
        orders = []
        for _ in range(2):
            faults = [Switch(endpoint, NORMAL, name) for name in ("one", "two", "three")]
            _, found = await chaos(endpoint, faults)
            orders.append([event.fault.name for event in found.events])
    assert orders[0] == orders[1]
    assert len(set(orders[0])) > 1


async def test_every_fault_strikes_as_often_as_any_other() -> None:
    async with fake_endpoint() as endpoint:
        faults = [Switch(endpoint, NORMAL, name) for name in ("one", "two")]
        _, found = await chaos(endpoint, faults)
    assert sorted(event.fault.name for event in found.events) == ["one", "one", "two", "two"]


async def test_no_fault_strikes_after_its_time_or_before_the_server_has_settled() -> None:
    begun: list[str] = []

    def settled() -> bool:
        begun.append("looked")
        return len(begun) % 3 == 0

    schedule = replace(QUICK, for_s=0.0)
    async with fake_endpoint() as endpoint:
        _, found = await chaos(endpoint, [Switch(endpoint, NORMAL)], schedule)
        assert found.events == []
        schedule = replace(QUICK, num_faults=2, settled=settled)
        _, found = await chaos(endpoint, [Switch(endpoint, NORMAL)], schedule)
    assert len(found.events) == 2
    assert len(begun) == 6


async def test_faults_strike_in_turn_and_in_the_middle_of_another() -> None:
    async with fake_endpoint() as endpoint:
        one, other = Switch(endpoint, NORMAL, "one"), Switch(endpoint, NORMAL, "other")
        said = await InTurn("both", [one, other]).strike(Random(1))
        assert said == "requests 0 to 2, requests 0 to 2"
        said = await Meanwhile("mid", one, other, (0.0, 0.0)).strike(Random(1))
    assert said == "requests 0 to 2; after 0.00 s requests 0 to 2"
    assert (one.strikes, other.strikes) == (2, 2)


@dataclass
class Door:
    """A moment that has come once somebody asked for it often enough."""

    times: int
    asked: int = 0

    def __call__(self) -> Callable[[], bool]:
        return self._asked_for

    def _asked_for(self) -> bool:
        self.asked += 1
        return self.asked >= self.times


@dataclass
class Lasting:
    """A fault that lasts until another has struck."""

    other: Switch
    name: str = "lasting"
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        async with asyncio.timeout(5.0):
            while not self.other.strikes:
                await asyncio.sleep(0.001)
        return "lasted"


async def test_a_fault_strikes_at_the_moment_that_was_waited_for() -> None:
    async with fake_endpoint() as endpoint:
        short, door = Switch(endpoint, NORMAL), Door(3)
        said = await AtMoment("at", Lasting(short), door, short).strike(Random(1))
        assert said == "lasted; meanwhile requests 0 to 2"
        assert door.asked == 3
        one, other = Switch(endpoint, NORMAL), Switch(endpoint, NORMAL)
        with pytest.raises(NoVictimError, match="did not come"):
            await AtMoment("at", one, Door(10**9), other, within_s=2.0).strike(Random(1))
    assert (one.strikes, other.strikes) == (1, 0)


async def test_a_fault_without_a_victim_ends_the_run() -> None:
    class Nobody(Switch):
        async def strike(self, random: Random) -> str:
            raise NoVictimError("0 of 3 processes match")

    async with fake_endpoint() as endpoint:
        with pytest.raises(NoVictimError):
            await chaos(endpoint, [Nobody(endpoint, NORMAL)])


async def test_a_server_that_does_not_become_ready_again_ends_the_run() -> None:
    class Wedge(Switch):
        async def strike(self, random: Random) -> str:
            self.endpoint.ready = False
            return "wedged"

    schedule = Schedule(seed=3, num_faults=1, pause_s=(0.0, 0.01), settle_s=0.1)
    async with fake_endpoint() as endpoint:
        with pytest.raises(RuntimeError, match="ready has not answered 200 within"):
            await chaos(endpoint, [Wedge(endpoint, NORMAL)], schedule)


async def test_golden_outputs_are_taken_from_a_server_that_answers_all() -> None:
    failing = FakeEndpoint(behaviour=lambda number: Behaviour(status=500 if number == 1 else 200))
    async with fake_endpoint(failing) as endpoint:
        with pytest.raises(RuntimeError, match="fails undisturbed"):
            await undisturbed(Load(endpoint.url, REQUESTS))


async def test_clients_that_vanish_close_their_connections() -> None:
    slow = FakeEndpoint(behaviour=lambda _: Behaviour(pause_after=1, pause_s=0.1))
    async with fake_endpoint(slow) as endpoint:
        fault = VanishingClients("vanish", endpoint.url, REQUESTS[0], count=20, timeout_s=5.0)
        assert await fault.strike(Random(1)) == "20 of 20 clients left a stream that had begun"
        assert len(endpoint.bodies) == 20


async def test_choices_are_compared_one_by_one() -> None:
    choices = next(r for r in REQUESTS if r.name.startswith("choices"))
    async with fake_endpoint() as endpoint:
        one = await run_request(endpoint.url, choices, 5.0)
        other = await run_request(endpoint.url, choices, 5.0)
    assert sorted(one.choices) == [0, 1, 2]
    assert difference(one, other) is None
    other.choices[2].finish_reason = "stop"
    assert difference(one, other) == "choice 2: finish_reason differ at 0: 's', not 'l'"
    del other.choices[1]
    assert difference(one, other) == "choices are [0, 2], not [0, 1, 2]"


def test_requests_are_the_same_for_the_same_seed_and_of_every_kind() -> None:
    assert mixed_requests("m", 20, seed=1) == mixed_requests("m", 20, seed=1)
    assert mixed_requests("m", 20, seed=1) != mixed_requests("m", 20, seed=2)
    names = [request.name for request in mixed_requests("m", 20, seed=1)]
    assert {name.rpartition("-")[0] for name in names} == set(KINDS)
    assert len(set(names)) == 20
