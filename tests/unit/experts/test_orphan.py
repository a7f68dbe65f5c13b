"""A shard ends itself only when nobody has been heard for the whole grace time."""

from __future__ import annotations

from experts.orphan import OrphanWatch


def test_a_shard_is_alone_after_the_grace_time() -> None:
    watch = OrphanWatch(grace_s=60.0, now_s=0.0)
    assert not watch.alone(60.0)
    assert watch.alone(60.1)


def test_any_sign_begins_the_grace_time_anew_and_an_older_one_does_not() -> None:
    watch = OrphanWatch(grace_s=60.0, now_s=0.0)
    watch.heard(50.0)
    watch.heard(10.0)
    assert not watch.alone(110.0)
    assert watch.alone(110.1)
