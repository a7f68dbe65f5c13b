"""The handshake: a rank says who it is and what it computes; a shard accepts it or says why not."""

from __future__ import annotations

from dataclasses import dataclass

from cluster import errors
from cluster.deadline import Deadline
from cluster.errors import LinkLostError, WireError
from cluster.transport.base import Link, Transport
from cluster.transport.poller import Poller
from cluster.wire import Hello, Refused, Welcome

_REFUSALS: dict[str, type[WireError]] = {
    error.code: error
    for error in (
        errors.MalformedFrameError,
        errors.ProtocolVersionError,
        errors.WrongModelError,
        errors.WrongBitClassError,
        errors.UnauthenticatedError,
        errors.StaleEpochError,
    )
}


@dataclass(frozen=True)
class Session:
    """An accepted link, and who accepted it."""

    link: Link
    welcome: Welcome


def open_session(transport: Transport, address: str, hello: Hello, deadline: Deadline) -> Session:
    """Connect and shake hands; blocks until `deadline` at most.

    Raises `LinkLostError` when nobody answers in time, or the typed error of the shard's refusal.
    """
    link = transport.connect(address, deadline)
    poller = Poller()
    try:
        link.send(hello)
        poller.add(link)
        while not deadline.expired():
            for _, item in poller.wait(min(0.2, deadline.remaining_s())):
                if isinstance(item, Welcome):
                    return _accepted(poller, link, item)
                if isinstance(item, Refused):
                    raise _REFUSALS.get(item.code, WireError)(item.message)
                if isinstance(item, errors.TrinityError):
                    raise item
        raise LinkLostError(link.peer, f"no answer to the handshake for {deadline.budget_s:g} s")
    except BaseException:
        poller.remove(link)
        link.close()
        raise
    finally:
        poller.close()


def _accepted(poller: Poller, link: Link, welcome: Welcome) -> Session:
    poller.remove(link)
    return Session(link, welcome)
