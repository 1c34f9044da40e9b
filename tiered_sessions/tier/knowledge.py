"""What a process knows by itself: answers the protocol's local questions, at once and without I/O."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

from ..shared_events import SharedEvents
from . import steps
from .breaker import Breaker
from .call import Call
from .floors import Floors
from .namespace import Namespace


class Knowledge:
    """Floors, sessions kept in the process, tokens, and when the cache was out of reach.

    Args:
        floors: The tags this process wrote or served.
        kept: The sessions read last.
        breaker: Knows since when the cache can be reached.
        clock: Seconds, monotonic.
        mask_age: How old, in seconds, a mask may be when its statement is sent (R7).

    Attributes:
        answers: What answers a question of a call, by the question's type.
    """

    def __init__(
        self,
        floors: Floors,
        kept: SharedEvents[Any],
        breaker: Breaker,
        clock: Callable[[], float],
        mask_age: float,
    ) -> None:
        self._floors = floors
        self._kept = kept
        self._breaker = breaker
        self._clock = clock
        self._mask_age = mask_age
        self.namespace: Namespace | None = None
        # A token must differ from every other process's, and from this one's own (R6).
        self._process = secrets.token_hex(6)
        self._tokens = 0
        # By type: a comparison of one after the other shows.
        self.answers: dict[type, Callable[[Any, Call], Any]] = {
            steps.Began: lambda question, call: floors.began(),
            steps.Judge: lambda question, call: (self._probed(), floors.standings(*question)),
            steps.Known: lambda question, call: kept.find(*question),
            steps.Served: lambda question, call: floors.served(*question),
            steps.Observed: lambda question, call: floors.observed(*question),
            steps.Wrote: lambda question, call: floors.wrote(*question),
            steps.Keep: lambda question, call: kept.keep(*question),
            steps.Token: self._token,
            steps.Young: self._young,
            steps.Seal: self._seal,
        }

    def forget(self) -> None:
        """Forgets what was learnt of the cache's content: another namespace begins."""
        self._floors.clear()
        self._kept.clear()

    def _probed(self) -> int:
        doubted = self.namespace is not None and self.namespace.doubted
        return sys.maxsize if doubted else self._breaker.probed

    def _token(self, question: steps.Token, call: Call) -> str:
        self._tokens += 1
        return f"{self._process}.{self._tokens}"

    def _young(self, question: steps.Young, call: Call) -> bool:
        return call.age(question.handles, self._clock()) < self._mask_age

    def _seal(self, question: steps.Seal, call: Call) -> None:
        if call.flight is not None:
            call.flight.sealed = True
