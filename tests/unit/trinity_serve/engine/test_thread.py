from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.deadline import Deadline
from cluster.errors import (
    EngineFailedError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ShardFailedError,
)
from tests.unit.trinity_serve.engine.fakes import (
    FakeRunner,
    finishes,
    make_config,
    make_request,
    outputs,
    undisturbed,
)
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import FinishReason, GenerationRequest, TokenEvent
from trinity_serve.engine.thread import EngineThread

WAIT_S = 10.0


class Inbox:
    """Collects what a thread delivers; waits on conditions with a deadline."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.threads: set[str] = set()
        self.fail_once = False
        self._arrived = threading.Condition()

    def deliver(self, events: list[TokenEvent]) -> None:
        with self._arrived:
            if self.fail_once:
                self.fail_once = False
                raise RuntimeError("a callback's fault")
            self.events += events
            self.threads.add(threading.current_thread().name)
            self._arrived.notify_all()

    def wait_for_end(self, *requests: GenerationRequest) -> None:
        def ended() -> bool:
            return all(finishes(self.events, request) for request in requests)

        with self._arrived:
            assert self._arrived.wait_for(ended, WAIT_S), "a request did not end"


class Served:
    """A running engine thread with all that a test wants to look at."""

    def __init__(self, config: EngineConfig) -> None:
        self.runner = FakeRunner(config)
        self.engine = Engine(self.runner, config)
        self.inbox = Inbox()
        self.now_s = 0.0
        self.thread = EngineThread(self.engine, self.inbox.deliver, clock=lambda: self.now_s)
        self.thread.start()

    def until(self, what: str, condition: object) -> None:
        assert callable(condition)
        deadline = Deadline.after(WAIT_S)
        while not condition():
            deadline.check(what)
            threading.Event().wait(0.002)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(make_config(max_num_seqs=4, max_waiting=4))
    yield served
    served.runner.hold.set()
    assert served.thread.stop(Deadline.after(WAIT_S))


def test_requests_from_many_threads_get_their_own_tokens(served: Served) -> None:
    requests = [make_request(f"r{i}", 40, 20, seed=i) for i in range(8)]
    submitters = [threading.Thread(target=served.thread.submit, args=(r,)) for r in requests]
    for submitter in submitters:
        submitter.start()
    served.inbox.wait_for_end(*requests)
    for request in requests:
        assert outputs(served.inbox.events, request) == undisturbed(request, 512)
    assert served.inbox.threads == {"trinity-engine"}


def test_a_refusal_of_the_engine_is_a_last_event(served: Served) -> None:
    request = make_request(prompt=())
    served.thread.submit(request)
    served.inbox.wait_for_end(request)
    (event,) = served.inbox.events
    assert event.finish is FinishReason.ERROR
    assert isinstance(event.error, InvalidRequestError)


def test_more_requests_than_seats_and_queue_are_refused_at_once(served: Served) -> None:
    served.runner.hold.clear()
    accepted = [make_request(f"r{i}") for i in range(8)]
    for request in accepted:
        served.thread.submit(request)
    with pytest.raises(OverloadedError):
        served.thread.submit(make_request("refused"))
    served.runner.hold.set()
    served.inbox.wait_for_end(*accepted)
    served.thread.submit(make_request("later"))


def test_a_cancelled_request_ends_once_and_frees_its_blocks(served: Served) -> None:
    served.runner.hold.clear()
    request = make_request(prompt=100, max_tokens=200)
    served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    served.thread.cancel(request.key)
    served.thread.cancel(request.key)
    served.runner.hold.set()
    served.inbox.wait_for_end(request)
    assert finishes(served.inbox.events, request) == [FinishReason.CANCELLED]
    served.until("free blocks", lambda: served.thread.stats().kv_usage == 0.0)


class ClosingEngine(Engine):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_the_engine_is_closed_with_its_thread() -> None:
    config = make_config()
    engine = ClosingEngine(FakeRunner(config), config)
    thread = EngineThread(engine, Inbox().deliver)
    thread.start()
    assert thread.stop(Deadline.after(WAIT_S))
    assert engine.closed


def test_events_of_a_replaced_attempt_are_not_delivered(served: Served) -> None:
    served.runner.hold.clear()
    request = make_request(max_tokens=5)
    served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    served.thread.submit(replace(request, attempt=1))
    served.runner.hold.set()
    served.inbox.wait_for_end(request)
    assert {event.attempt for event in served.inbox.events} == {1}
    assert outputs(served.inbox.events, request) == undisturbed(request, 512)


def test_an_unknown_error_ends_what_is_open_and_the_loop_goes_on(served: Served) -> None:
    served.runner.errors.append(ZeroDivisionError("a bug"))
    lost, later = make_request("lost"), make_request("later")
    served.thread.submit(lost)
    served.inbox.wait_for_end(lost)
    (event,) = served.inbox.events
    assert isinstance(event.error, EngineFailedError)
    assert "ZeroDivisionError: a bug" in str(event.error)
    served.thread.submit(later)
    served.inbox.wait_for_end(later)
    assert outputs(served.inbox.events, later) == undisturbed(later, 512)


def test_unknown_errors_in_a_row_make_it_not_ready_until_a_good_step(served: Served) -> None:
    served.thread.check_ready()
    for idx in range(3):
        served.runner.errors.append(ZeroDivisionError("a bug"))
        request = make_request(f"r{idx}")
        served.thread.submit(request)
        served.inbox.wait_for_end(request)
    with pytest.raises(NotReadyError, match="failed 3 times in a row"):
        served.thread.check_ready()
    good = make_request("good")
    served.thread.submit(good)
    served.inbox.wait_for_end(good)
    served.thread.check_ready()


def test_a_known_error_of_the_model_does_not_count_against_the_engine(served: Served) -> None:
    for idx in range(4):
        served.runner.errors.append(ShardFailedError(0, "crashed"))
        request = make_request(f"r{idx}")
        served.thread.submit(request)
        served.inbox.wait_for_end(request)
    served.thread.check_ready()


def test_a_forward_pass_that_hangs_makes_it_not_ready(served: Served) -> None:
    served.runner.hold.clear()
    request = make_request()
    served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    served.now_s = 2.4
    served.thread.check_ready()
    served.now_s = 2.6
    with pytest.raises(NotReadyError, match=r"no progress for 2\.6 s"):
        served.thread.check_ready()
    served.runner.hold.set()
    served.inbox.wait_for_end(request)
    served.until("ready", lambda: served.thread.last_turn_at_s == 2.6)
    served.thread.check_ready()


def test_a_callback_that_raises_does_not_stop_other_requests(served: Served) -> None:
    served.inbox.fail_once = True
    request = make_request(max_tokens=3)
    served.thread.submit(request)
    served.inbox.wait_for_end(request)
    assert len(outputs(served.inbox.events, request)) == 2


def test_stop_cancels_everything_once_and_refuses_what_comes_later(served: Served) -> None:
    served.runner.hold.clear()
    requests = [make_request(f"r{i}", 100, 300) for i in range(6)]
    for request in requests:
        served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    stopper = threading.Thread(target=served.thread.stop, args=(Deadline.after(WAIT_S),))
    stopper.start()
    served.until("stopping", lambda: not_ready(served.thread))
    with pytest.raises(NotReadyError):
        served.thread.submit(make_request("late"))
    served.runner.hold.set()
    stopper.join(WAIT_S)
    for request in requests:
        assert finishes(served.inbox.events, request) == [FinishReason.CANCELLED]
    assert served.thread.stop(Deadline.after(WAIT_S))
    assert sum(event.finish is not None for event in served.inbox.events) == 6


def test_stop_ends_everything_once_even_when_the_forward_pass_hangs(served: Served) -> None:
    served.runner.hold.clear()
    request = make_request()
    served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    assert not served.thread.stop(Deadline.after(0.05))
    assert finishes(served.inbox.events, request) == [FinishReason.CANCELLED]
    served.runner.hold.set()
    assert served.thread.stop(Deadline.after(WAIT_S))
    assert len(served.inbox.events) == 1


def not_ready(thread: EngineThread) -> bool:
    try:
        thread.check_ready()
    except NotReadyError:
        return True
    return False


def test_a_step_is_progress_for_as_long_as_it_shows_that_it_goes_on(served: Served) -> None:
    served.runner.hold.clear()
    request = make_request()
    served.thread.submit(request)
    assert served.runner.entered.wait(WAIT_S)
    for now_s in (2.0, 4.0, 60.0):
        served.runner.sign_at_s = served.now_s = now_s
        served.thread.check_ready()
    served.now_s = 63.0
    with pytest.raises(NotReadyError, match=r"no progress for 3\.0 s"):
        served.thread.check_ready()
    served.runner.hold.set()
    served.inbox.wait_for_end(request)
    served.until("ready again", lambda: served.thread.last_turn_at_s == 63.0)
    served.thread.check_ready()
