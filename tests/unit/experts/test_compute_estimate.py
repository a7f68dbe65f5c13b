"""Which products are announced, and for how long."""

from __future__ import annotations

from experts.compute_estimate import ComputeEstimate


def test_decode_sized_products_are_never_announced() -> None:
    assert ComputeEstimate().announce_s(32) == 0.0


def test_a_long_product_is_announced_with_room_to_spare() -> None:
    estimate = ComputeEstimate()
    estimate.ran(1000, 1.0)
    assert estimate.announce_s(2000) >= 4.0


def test_few_rows_say_nothing_about_many() -> None:
    estimate = ComputeEstimate()
    before_s = estimate.announce_s(300)
    estimate.ran(1, 5.0)
    assert estimate.announce_s(300) == before_s


def test_a_machine_that_proves_fast_stops_announcing() -> None:
    estimate = ComputeEstimate()
    for _ in range(50):
        estimate.ran(1000, 0.01)
    assert estimate.announce_s(1000) == 0.0


def test_no_announcement_hides_a_dead_shard_for_long() -> None:
    estimate = ComputeEstimate()
    estimate.ran(64, 600.0)
    assert estimate.announce_s(100_000) <= 10.0
