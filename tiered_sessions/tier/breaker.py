"""The circuit breaker in front of the cache, and its adaptive time-out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW = 10
_FAILURES = 5
_SHORTEST = 0.005
LONGEST = 0.050
_COOLDOWN = 0.5
_LONGEST_COOLDOWN = 10.0
_FACTOR = 4.0
_DECAY = 0.999
_TRIED = 10


class Breaker:
    """Opens when five of the last ten commands failed; those that were under way together count as one.

    While it is open there is no cache traffic; after a pause that doubles up to 10 s one probe is
    sent, and its success closes it. The time-out of a single command follows the slowest recent
    replies (their decaying maximum, four times), between 5 and 50 ms; it is 50 ms until there have
    been some, of which the first, that waits for the connection, says nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._results: deque[bool] = deque(maxlen=_WINDOW)
        self._slowest = 0.0
        self._replies = 0
        self._cooldown = _COOLDOWN
        self._opened_at: float | None = None
        self._failed_at = float("-inf")
        self.probed = 0
        """Server time, in ms, of the probe that last closed the breaker; 0 if it never opened."""

    @property
    def open(self) -> bool:
        """Whether commands fail at once."""
        return self._opened_at is not None

    @property
    def probe_due(self) -> bool:
        """Whether it is time to send the one probe."""
        return self._opened_at is not None and self._clock() >= self._opened_at + self._cooldown

    @property
    def timeout(self) -> float:
        """How long one command may take, in seconds."""
        if self._replies < _TRIED:
            return LONGEST
        return min(max(self._slowest * _FACTOR, _SHORTEST), LONGEST)

    def succeeded(self, seconds: float) -> None:
        """Notes a reply that took `seconds`."""
        self._results.append(True)
        self._replies += 1
        if self._replies > 1:
            # Beyond the longest time-out there is nothing to adapt to: such a reply was not waited for.
            self._slowest = max(min(seconds, LONGEST / _FACTOR), self._slowest * _DECAY)

    def failed(self, began: float) -> bool:
        """Notes the failure of a command that was sent at `began`; true if it opened the breaker."""
        if began < self._failed_at:
            # One pause of the server fails all who are waiting then, and is one failure.
            return False
        self._failed_at = self._clock()
        self._results.append(False)
        # A reply that came too late says that the time-out was too short, too.
        self._slowest = min(2 * max(self._slowest, _SHORTEST / _FACTOR), LONGEST / _FACTOR)
        if self.open or self._results.count(False) < _FAILURES:
            return False
        self._opened_at = self._clock()
        return True

    def probe_sent(self) -> None:
        """Notes that the one probe is under way: the next is due after a longer pause."""
        self._opened_at = self._clock()
        self._cooldown = min(self._cooldown * 2, _LONGEST_COOLDOWN)

    def close(self, now: int) -> None:
        """Closes after a probe that the server answered at `now` (its ms)."""
        self._opened_at = None
        self._cooldown = _COOLDOWN
        self._results.clear()
        self._slowest = 0.0
        self._replies = 0
        self.probed = now
