"""Groups of two processes that exchange rows, without a world; hides `torch.distributed`.

Nothing else imports `torch.distributed`: its stores and groups are used by their own classes, which
its documentation does not name as public. Tried with torch 2.13 and Gloo on the CPU: a killed peer
is an error of the waiting `recv` after 30 ms, of later calls at once, and the process lives on; a
stopped one is an error at the wait's own timeout. NCCL has not been run.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from threading import Condition
from typing import TYPE_CHECKING, Final, Protocol, cast

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

if TYPE_CHECKING:
    from collections.abc import Callable

# Sends are given up by dropping the generation, not by NCCL's watchdog: a shard that computes takes
# rows when it is done. Never met unless a process is stuck.
_WATCHDOG_S: Final = 60.0
_NCCL_ENVIRONMENT: Final = {
    # By default a watchdog ends the process at an error or a missed heartbeat; ours goes on over
    # the base link.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    # Ray shows each actor its own devices only. With these on, exchanges between such processes
    # were reported to be 2,400 times slower (ray#61073).
    "NCCL_CUMEM_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
}
_CONNECT_TIMEOUTS: Final = 5
_TAGS: Final = 2**16
_LOOK_EVERY_S: Final = 0.0002


class StoreClosedError(RuntimeError):
    """The group is wanted no more while it is being built."""


class LaneStore(c10d.Store):
    """The store through which two members find each other: each key also goes to the other.

    Filled by `set` (this member's thread that builds the group) and `feed` (what the other sent).
    """

    def __init__(self, publish: Callable[[str, bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._publish = publish
        self.timeout_s = timeout_s
        self._values: dict[str, bytes] = {}
        self._changed = Condition()
        self._closed = False

    def set(self, key: str, value: str | bytes) -> None:
        """Keep a value and send it to the other member."""
        data = value if isinstance(value, bytes) else value.encode()
        self.feed(key, data)
        self._publish(key, data)

    def feed(self, key: str, value: bytes) -> None:
        """Keep a value."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        """Return a value, waiting for it. Raises RuntimeError when it does not come in time."""
        self.wait([key])
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for values; for our time, not the library's (which is about connecting)."""
        del timeout
        with self._changed:
            come = self._changed.wait_for(lambda: self._closed or self.check(keys), self.timeout_s)
        if self._closed:
            raise StoreClosedError("the group was given up while it was built")
        if not come:
            raise RuntimeError(f"the other member did not say {keys} within {self.timeout_s:g} s")

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all values are here."""
        return all(key in self._values for key in keys)

    def delete_key(self, key: str) -> bool:
        """Forget a value here; the other member keeps it."""
        return self._values.pop(key, None) is not None

    def close(self) -> None:
        """End every wait with an error; from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Exchange(Protocol):
    """A send or receive that is under way."""

    def wait(self, timeout_s: float) -> None:
        """Block until it is done. Raises RuntimeError for a lost peer and at the timeout."""
        ...


class Pair(ABC):
    """One member's end of a group of two. `send` and `receive` only start and never block."""

    device: torch.device
    """Where rows are that come and go."""

    @abstractmethod
    def send(self, rows_B: Tensor, sequence: int) -> Exchange:
        """Start sending bytes; the result is to be kept until they have been received."""

    @abstractmethod
    def receive(self, rows_B: Tensor, sequence: int) -> Exchange:
        """Start receiving exactly so many bytes into `rows_B`."""

    @abstractmethod
    def close(self) -> None:
        """Abort what is under way; returns in bounded time, whatever the peer does."""


class _PointToPoint(Protocol):
    """What backends have and their stubs lack."""

    def send(self, tensors: list[Tensor], to: int, tag: int) -> c10d.Work: ...

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> c10d.Work: ...

    def abort(self) -> None: ...


class _GlooExchange:
    def __init__(self, work: c10d.Work) -> None:
        self._work = work

    def wait(self, timeout_s: float) -> None:
        self._work.wait(timedelta(seconds=timeout_s))


class GlooPair(Pair):
    """Over TCP between `host` and the other member's host; rows on the host."""

    def __init__(self, store: LaneStore, member: int, host: str) -> None:
        """Build this end; blocks until the other builds his, as long as `store` waits."""
        self.device = torch.device("cpu")
        self._other = 1 - member
        # The stubs call these by other names than the library does.
        backend = c10d.ProcessGroupGloo
        options = backend._Options()  # type: ignore[attr-defined]
        options._devices = [backend.create_device(hostname=host)]
        # Gloo waits five times as long for a member to connect that has vanished meanwhile.
        options._timeout = timedelta(seconds=store.timeout_s / _CONNECT_TIMEOUTS)
        options._threads = 1
        self._store = store
        group = backend(store, member, 2, options)
        self._group: _PointToPoint | None = cast(_PointToPoint, group)

    @property
    def _open_group(self) -> _PointToPoint:
        if self._group is None:
            raise RuntimeError("the group has been closed")
        return self._group

    def send(self, rows_B: Tensor, sequence: int) -> Exchange:
        """See `Pair.send`."""
        return _GlooExchange(self._open_group.send([rows_B], self._other, sequence % _TAGS))

    def receive(self, rows_B: Tensor, sequence: int) -> Exchange:
        """See `Pair.receive`."""
        return _GlooExchange(self._open_group.recv([rows_B], self._other, sequence % _TAGS))

    def close(self) -> None:
        """See `Pair.close`: the sockets go with the last exchange that somebody holds."""
        self._group = None


class _NcclExchange:
    """Waits without blocking inside CUDA, so that a dead peer costs the timeout and no more."""

    def __init__(self, work: c10d.Work) -> None:
        self._work = work

    def wait(self, timeout_s: float) -> None:
        ends_s = time.monotonic() + timeout_s
        while not self._work.is_completed():
            if time.monotonic() > ends_s:
                raise RuntimeError(f"not done within {timeout_s:g} s")
            time.sleep(_LOOK_EVERY_S)
        self._work.wait()


class NcclPair(Pair):
    """Between two GPUs; rows on the device. Not run so far: no machine with two GPUs was at hand.

    One communicator for each direction: exchanges of one communicator follow each other, and a
    `recv` that waits would hold up the sends behind it.
    """

    def __init__(self, store: LaneStore, member: int, device: torch.device) -> None:
        """Build this end; blocks until the other builds his, as long as `store` waits."""
        for name, value in _NCCL_ENVIRONMENT.items():
            os.environ[name] = value
        self.device = device
        self._member, self._other = member, 1 - member
        self._store = store
        self._groups = [self._open(f"from{sender}", member) for sender in (0, 1)]

    def _open(self, prefix: str, member: int) -> _PointToPoint:
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=_WATCHDOG_S)
        store = c10d.PrefixStore(prefix, self._store)
        group = c10d.ProcessGroupNCCL(store, member, 2, options)
        group.eager_connect_single_device(self.device)
        return cast(_PointToPoint, group)

    def send(self, rows_B: Tensor, sequence: int) -> Exchange:
        """See `Pair.send`; ordered after what the current stream has been given."""
        return _NcclExchange(self._groups[self._member].send([rows_B], self._other, 0))

    def receive(self, rows_B: Tensor, sequence: int) -> Exchange:
        """See `Pair.receive`."""
        return _NcclExchange(self._groups[self._other].recv([rows_B], self._other, 0))

    def close(self) -> None:
        """See `Pair.close`: `ncclCommAbort` on both."""
        for group in self._groups:
            with contextlib.suppress(RuntimeError):
                group.abort()


def open_pair(store: LaneStore, member: int, backend: str, place: str) -> Pair:
    """Build one end of a group. Raises RuntimeError when that fails.

    Args:
        store: shared with the other member.
        member: 0 or 1.
        backend: ``gloo`` or ``nccl``.
        place: this host's address for Gloo, this process's device for NCCL.
    """
    if backend == "nccl":
        return NcclPair(store, member, torch.device(place))
    return GlooPair(store, member, place)
