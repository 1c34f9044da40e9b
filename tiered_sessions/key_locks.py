"""Turns among those who write to one session."""

from __future__ import annotations

import asyncio

from .records import SessionKey

_Locks = dict[tuple[int, SessionKey], tuple[asyncio.Lock, int]]


class KeyLocks:
    """One lock a session for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: _Locks = {}

    def hold(self, key: SessionKey) -> _Hold:
        """Returns what holds the lock of `key` while it is entered."""
        return _Hold(self._locks, key)


class _Hold:
    # Not a generator in a context manager, which costs an append four objects more.
    __slots__ = ("_locks", "_name")

    def __init__(self, locks: _Locks, key: SessionKey) -> None:
        self._locks = locks
        # Loops run in threads of their own; a lock of asyncio belongs to one of them.
        self._name = (id(asyncio.get_running_loop()), key)

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._name, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[self._name] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave().release()

    def _leave(self) -> asyncio.Lock:
        lock, users = self._locks.pop(self._name)
        if users > 1:
            self._locks[self._name] = (lock, users - 1)
        return lock
