from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trinity_serve.engine.fakes import make_config, make_request
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.kv_blocks import KvBlocks
from trinity_serve.engine.prefill_pace import LEAST_ROWS, PROBE_ROWS
from trinity_serve.engine.scheduler import Chunk, Scheduler
from trinity_serve.engine.sequence import Sequence


class Steps:
    """A scheduler whose steps succeed and give token 1 each time."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.kv = KvBlocks(config)
        self.scheduler = Scheduler(config, self.kv)
        self.num_arrivals = 0

    def add(self, name: str, num_prompt: int, priority: int = 0) -> Sequence:
        self.num_arrivals += 1
        request = replace(make_request(name, num_prompt), priority=priority)
        seq = Sequence(request, self.num_arrivals)
        self.scheduler.add(seq)
        return seq

    def step(self, now_s: float = 0.0) -> list[Chunk]:
        chunks = self.scheduler.schedule(now_s)
        for chunk in chunks:
            seq = chunk.seq
            seq.num_computed = chunk.end
            self.kv.commit(chunk.kv, chunk.end, seq.tokens_T, seq.digests)
            if seq.num_remaining == 0:
                seq.append(1)
        return chunks


def test_decodes_come_first_and_prefill_gets_what_is_left() -> None:
    steps = Steps(make_config())
    short, long = steps.add("short", 5), steps.add("long", 300)
    assert [(c.seq, c.num_rows) for c in steps.step()] == [(short, 5), (long, 123)]
    assert [(c.seq, c.num_rows) for c in steps.step()] == [(short, 1), (long, 32)]


def test_a_step_of_decodes_and_prompt_rows_keeps_its_time_whatever_a_row_costs() -> None:
    """A long prompt beside two streams, on a machine whose attention costs more and more."""
    sizes = make_config(
        num_global_blocks=1000,
        num_sliding_blocks=1000,
        max_model_len=31_000,
        max_num_batched_tokens=600,
        max_prefill_chunk=512,
        max_mixed_step_s=0.1,
    )
    steps = Steps(sizes)
    for name in "ab":
        steps.add(name, 5)
    now_s = 0.0
    for _ in range(10):
        steps.step(now_s)
        now_s += 0.01
    long = steps.add("long", 30_000)
    took_s, num_rows = [], []
    while long.num_computed < 30_000:
        context = long.num_computed
        chunks = steps.step(now_s)
        (rows,) = [chunk.num_rows for chunk in chunks if chunk.seq is long]
        took_s.append(0.01 + 0.02 + rows * (1e-4 + 1e-8 * (context + rows / 2)))
        num_rows.append(rows)
        now_s += took_s[-1]
    assert max(took_s) < 0.1
    # It makes use of the time: four fifths are aimed at.
    assert sum(took_s[5:-1]) / len(took_s[5:-1]) > 0.07
    assert num_rows[0] == PROBE_ROWS
    assert min(num_rows[10:-1]) > 100


def test_prompts_get_on_however_slow_steps_are_and_one_at_a_time() -> None:
    steps = Steps(
        make_config(max_num_batched_tokens=600, max_prefill_chunk=512, max_mixed_step_s=0.1)
    )
    steps.add("stream", 5)
    steps.step(0.0)
    first, second = steps.add("first", 200), steps.add("second", 200)
    rows = []
    for number in range(1, 8):
        chunks = steps.step(10.0 * number)
        rows.append({chunk.seq: chunk.num_rows for chunk in chunks if chunk.num_rows > 1})
    assert rows[0] == {first: PROBE_ROWS}
    assert rows[1:5] == [{first: LEAST_ROWS}] * 4
    # The rest of the first, and time is up for the second.
    assert rows[5] == {first: 200 - PROBE_ROWS - 4 * LEAST_ROWS}
    assert rows[6] == {second: LEAST_ROWS}


def test_a_rest_between_requests_is_no_steps_time() -> None:
    steps = Steps(
        make_config(max_num_batched_tokens=600, max_prefill_chunk=512, max_mixed_step_s=0.1)
    )
    gone = steps.add("gone", 5)
    steps.step(0.0)
    steps.step(0.01)
    steps.scheduler.remove(gone)
    steps.add("stream", 5)
    steps.step(1000.0)
    steps.step(1000.01)
    long = steps.add("long", 300)
    steps.step(1000.02)
    steps.step(1000.03)
    assert steps.step(1000.04)[-1].seq is long
    assert long.num_computed > PROBE_ROWS + LEAST_ROWS


def test_a_prompt_alone_keeps_its_whole_chunks() -> None:
    sizes = make_config(
        num_global_blocks=400,
        num_sliding_blocks=400,
        max_model_len=12_000,
        max_num_batched_tokens=4096,
    )
    steps = Steps(sizes)
    steps.add("long", 11_000)
    assert [chunk.num_rows for _ in range(3) for chunk in steps.step()] == [4096, 4096, 2808]


def test_higher_priority_and_earlier_arrival_are_admitted_first() -> None:
    steps = Steps(make_config(max_num_seqs=1))
    later = steps.add("later", 5, priority=1)
    first = steps.add("first", 5)
    second = steps.add("second", 5)
    order = []
    for _ in range(3):
        (chunk,) = steps.step()
        order.append(chunk.seq)
        steps.scheduler.remove(chunk.seq)
    assert order == [first, second, later]


def test_nobody_overtakes_the_first_that_does_not_fit() -> None:
    steps = Steps(make_config(num_global_blocks=8, max_model_len=256))
    running = steps.add("running", 100)
    steps.step()
    large = steps.add("large", 200)
    small = steps.add("small", 5)
    assert [chunk.seq for chunk in steps.step()] == [running]
    steps.scheduler.remove(running)
    assert [chunk.seq for chunk in steps.step()] == [large]
    steps.scheduler.remove(large)
    assert [chunk.seq for chunk in steps.step()] == [small]


def test_a_preempted_sequence_keeps_its_tokens_and_goes_to_the_front() -> None:
    steps = Steps(make_config(num_global_blocks=5, max_model_len=160))
    first, second = steps.add("first", 60), steps.add("second", 60)
    steps.step()
    waiting = steps.add("waiting", 60)
    while steps.scheduler.num_preemptions == 0:
        steps.step()
    assert steps.scheduler.running == [first]
    assert steps.scheduler.waiting == [second, waiting]
    assert second.kv is None
    assert second.num_outputs > 0
    assert steps.scheduler.num_waiting_tokens == second.num_tokens + waiting.num_tokens
    steps.kv.check()


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 200), min_size=1, max_size=10),
    max_batched=st.integers(8, 100),
    data=st.data(),
)
def test_each_step_keeps_to_its_budgets(
    prompts: list[int], max_batched: int, data: st.DataObject
) -> None:
    max_prefill = data.draw(st.integers(1, max_batched))
    config = make_config(
        num_global_blocks=20,
        max_model_len=400,
        max_num_batched_tokens=max_batched,
        max_prefill_chunk=max_prefill,
    )
    steps = Steps(config)
    for idx, num_prompt in enumerate(prompts):
        steps.add(f"r{idx}", num_prompt)
    for _ in range(60):
        decoding = {seq for seq in steps.scheduler.running if seq.num_remaining == 1}
        num_preemptions = steps.scheduler.num_preemptions
        chunks = steps.step()
        served = {chunk.seq for chunk in chunks}
        assert 0 < sum(chunk.num_rows for chunk in chunks) <= max_batched
        assert len(steps.scheduler.running) <= config.max_num_seqs
        if steps.scheduler.num_preemptions == num_preemptions:
            assert decoding <= served
        if decoding & served:
            prefilled = [chunk.num_rows for chunk in chunks if chunk.seq not in decoding]
            assert sum(prefilled) <= max_prefill
        steps.kv.check()
        for seq in [seq for seq in steps.scheduler.running if seq.num_outputs >= 30]:
            steps.scheduler.remove(seq)
        if not steps.scheduler.running and not steps.scheduler.waiting:
            return
