"""What is made of an answer while it is still on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..records import Snapshot

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes something of the answer that is expected, and anew if another one comes.

    A caller who is alone would sleep while the cache is asked. Nearly always the answer is what was kept,
    and what is made of it is ready when it comes.

    Args:
        make: Makes what the caller wants of an answer.

    Attributes:
        tried: Whether it was asked to.
    """

    __slots__ = ("_expected", "_made", "_make", "tried")

    def __init__(self, make: Callable[[Snapshot], T]) -> None:
        self.tried = False
        self._make = make
        self._expected: Snapshot | None = None

    def begin(self, expected: Snapshot | None) -> None:
        """Makes it of what is expected, if anything is."""
        self.tried = True
        if expected is None:
            return
        try:
            self._made = self._make(expected)
        except Exception:
            # If it is still so when the answer has come, the caller hears of it then.
            return
        self._expected = expected

    def confirm(self, answer: Snapshot) -> bool:
        """Says whether this was expected; what was made is thrown away if not."""
        if self._expected is not None and not self._expected.shows(answer):
            self._expected = None
            del self._made
        return self._expected is not None

    def of(self, answer: Snapshot) -> T:
        """Returns what is made of the answer."""
        return self._make(answer) if self._expected is None else self._made
