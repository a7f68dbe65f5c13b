"""The lives of shards that a pool knows of: which join, serve, are suspected, leave, are given up.

A shard sits on a seat, which its replacement takes over. Pure; time is passed in. What they hold is
kept by `cluster.holdings`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable

from cluster.errors import NoSuchShardError
from cluster.members import SERVING, Failure, Member, Respawn, ShardState
from cluster.pool_messages import ShardKey

MAX_BACKOFF_S = 10.0
SUSPECT_S = 1.0
"""A suspect that has not shown for so long that it makes turns is ended."""
STALLED_S = 1.0
"""A suspect whose compute loop made a turn within so long is cleared."""
HUNG_S = 3.0
"""A compute loop without a turn for so long is suspected, whatever ranks say."""
KILL_AGAIN_S = 10.0
"""A shard that is told to end and is not gone after so long is told again."""
UNLISTED_S = 1.0
"""How long a shard lives on after the placement has left it out."""
START_S = 5.0
"""How long others wait at most for a shard that starts; imports take seconds of two cores."""
KEPT_FAILURES = 20


class Roster:
    """One life by seat, and what is remembered of earlier ones. One owner; not for threads."""

    def __init__(self) -> None:
        self.failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)
        self.changed = True
        """Whether a placement made now would be another one than the last."""
        self._members: dict[int, Member] = {}
        self._rivals: list[Member] = []
        """Older lives of seats, found by a new pool; they are ended."""
        self._doomed: list[ShardKey] = []
        """Killed by hand: nothing else is told of it, it is found out like any death."""
        self._respawns: dict[int, Respawn] = {}
        self._last_incarnation = 0

    def adopt(self, found: Iterable[Member]) -> None:
        """Take over the lives that an earlier pool left; of two on a seat the older is ended."""
        for member in sorted(found, key=lambda each: each.key):
            rival = self._members.get(member.key.index)
            if rival is not None:
                rival.state = ShardState.DEAD
                self._rivals.append(rival)
            self._members[member.key.index] = member
            self._last_incarnation = max(self._last_incarnation, member.key.incarnation)

    def at(self, seat: int) -> Member | None:
        """Return who sits there."""
        return self._members.get(seat)

    def find(self, key: ShardKey) -> Member | None:
        """Return this very life; None when its seat has passed to another."""
        member = self._members.get(key.index)
        return None if member is None or member.key != key else member

    def find_serving(self, shard: int, incarnation: int | None) -> Member:
        """Return a shard that serves; None: whichever life. Raises `NoSuchShardError`."""
        for member in self.serving:
            if member.key.index == shard and incarnation in (None, member.key.incarnation):
                return member
        names = ", ".join(f"{each.key.index}.{each.key.incarnation}" for each in self.serving)
        raise NoSuchShardError(shard, incarnation, names)

    @property
    def members(self) -> list[Member]:
        """Every shard that lives or starts, by seat."""
        return [member for _, member in sorted(self._members.items())]

    @property
    def serving(self) -> list[Member]:
        """Those that a placement names, by seat."""
        return [
            member
            for member in self.members
            if member.state in SERVING and member.unlisted_at_s is None
        ]

    @property
    def keys(self) -> list[ShardKey]:
        """Every shard that may live, in order."""
        return sorted(member.key for member in [*self._rivals, *self._members.values()])

    def start(self, seat: int, now_s: float, *, in_turn: bool) -> ShardKey | None:
        """Seat a new life where there is none and a try is due; return its key.

        `in_turn`: not while another one starts and has not begun to read: together they would take
        every core from those that serve.
        """
        if seat in self._members or self._respawns.get(seat, Respawn()).due_s > now_s:
            return None
        if in_turn and any(self._is_starting(member, now_s) for member in self._members.values()):
            return None
        self._last_incarnation += 1
        key = ShardKey(seat, self._last_incarnation)
        self._members[seat] = Member(key, ShardState.JOINING, started_at_s=now_s)
        return key

    def _is_starting(self, member: Member, now_s: float) -> bool:
        joins = member.state is ShardState.JOINING and not member.reads
        return joins and member.started_at_s + START_S > now_s

    def joined(self, member: Member) -> None:
        """A life has loaded."""
        member.state = ShardState.READY
        self._respawns.pop(member.key.index, None)
        self.changed = True

    def judge(self, member: Member, idle_s: float, now_s: float) -> None:
        """Clear a suspect that makes turns; suspect one that makes none."""
        if member.state is ShardState.SUSPECT and idle_s < STALLED_S:
            member.state, self.changed = ShardState.READY, True
        elif member.state is ShardState.READY and idle_s >= HUNG_S:
            self.suspect(member, f"no turn for {idle_s:.1f} s", now_s)

    def suspect(self, member: Member, reason: str, now_s: float) -> None:
        """Take note that a rank lost this shard, or waits for it in vain, or that it hangs."""
        if member.state is ShardState.READY:
            member.state, member.suspected_at_s = ShardState.SUSPECT, now_s
            self.changed = True
            self.note_failure(member.key, reason, now_s)

    def note_failure(self, key: ShardKey, reason: str, now_s: float) -> None:
        """Keep it for people."""
        self.failures.append(Failure(now_s, key.index, key.incarnation, reason))

    def doom(self, key: ShardKey, now_s: float) -> None:
        """Have a shard ended without warning."""
        self._doomed.append(key)
        self.note_failure(key, "killed by hand", now_s)

    def gone(self, key: ShardKey, reason: str, now_s: float) -> Member | None:
        """Take note that a life is certainly gone; return who left a seat by it."""
        self._rivals = [member for member in self._rivals if member.key != key]
        member = self.find(key)
        if member is None:
            return None
        del self._members[key.index]
        for leaving in self._members.values():  # may be the only copies again
            leaving.unlisted_at_s = None
        if member.state is ShardState.JOINING:
            self._back_off(key.index, now_s)
        elif member.state is not ShardState.DEAD:  # else it was taken out of the placement then
            self.changed = True
        if member.state not in (ShardState.DRAINING, ShardState.DEAD):
            told = member.report.problem if member.report is not None else ""
            self.note_failure(key, told or reason, now_s)
        return member

    def _back_off(self, seat: int, now_s: float) -> None:
        respawn = self._respawns.setdefault(seat, Respawn())
        respawn.failures += 1
        respawn.due_s = now_s + min(0.5 * 2.0**respawn.failures, MAX_BACKOFF_S)

    def num_failures(self, seat: int) -> int:
        """Return how many lives of a seat have ended one after another before they were ready."""
        return self._respawns.get(seat, Respawn()).failures

    def try_at_once(self) -> None:
        """Forget how often lives ended before they were ready: what is wanted has changed."""
        self._respawns.clear()

    def keep(self, wanted: Container[int]) -> None:
        """Let shards on other seats leave, and those stay that are wanted again."""
        for seat, member in self._members.items():
            if seat not in wanted and member.state in (ShardState.READY, ShardState.SUSPECT):
                member.state, self.changed = ShardState.DRAINING, True
            elif seat in wanted and member.state is ShardState.DRAINING:
                member.state, self.changed = ShardState.READY, True
                member.unlisted_at_s = None

    def give_up(
        self, seats: Container[int], is_drained: Callable[[int], bool], now_s: float
    ) -> list[ShardKey]:
        """Give up who is not needed or shows no turn; return who is to be ended, each once a while.

        Args:
            seats: those that there are to be; nobody joins on others.
            is_drained: whether no placement has named a seat for long enough.
            now_s: the time.
        """
        for seat, member in self._members.items():
            if member.state is ShardState.JOINING and seat not in seats:
                member.state = ShardState.DEAD
            elif member.state is ShardState.SUSPECT:
                if member.suspected_at_s + SUSPECT_S <= now_s:
                    member.state, self.changed = ShardState.DEAD, True
            elif member.state is ShardState.DRAINING and not self.changed:
                self._let_go(member, is_drained, now_s)
        due = [
            member
            for member in [*self._rivals, *self._members.values()]
            if member.state is ShardState.DEAD and member.kill_told_at_s + KILL_AGAIN_S <= now_s
        ]
        for member in due:
            member.kill_told_at_s = now_s
        doomed, self._doomed = self._doomed, []
        return doomed + [member.key for member in due]

    def _let_go(self, member: Member, is_drained: Callable[[int], bool], now_s: float) -> None:
        """Take a drained shard out of the placement, and end it when ranks have heard of that."""
        if member.unlisted_at_s is None:
            if is_drained(member.key.index):
                member.unlisted_at_s, self.changed = now_s, True
        elif member.unlisted_at_s + UNLISTED_S <= now_s:
            member.state = ShardState.DEAD
