"""The rules of windows: which events an entry keeps, and what it says of the others (I2, I8)."""

from __future__ import annotations

import pytest

from ..cache import chunks
from ..cache.base import ApplyReply, CacheLimits, SessionCache
from ..records import Content
from .cache_samples import KEY, CacheFixtures, check_window, content, event, events, fill, hit, tag


class WindowRules(CacheFixtures):
    """fill and apply: the newest events, without a gap, within the limits."""

    async def test_a_fill_keeps_the_newest_events(self, cache: SessionCache, limits: CacheLimits) -> None:
        """Of more than the window holds; none is kept back that fits."""
        for count in (limits.window_events, limits.window_events + 1, 3 * limits.window_events):
            whole = content(count, count)
            await fill(cache, whole)
            found = (await hit(cache)).content
            check_window(found, whole)
            assert len(found.events) == limits.window_events
            await cache.drop(KEY, None, None)

    async def test_an_applied_window_stays_bounded(self, cache: SessionCache, limits: CacheLimits) -> None:
        """A cache may trim a chunk at a time, but never below the window."""
        first = limits.window_events
        await fill(cache, content(first, first))
        for revision in range(first + 1, first + 3 * chunks.CHUNK):
            new = (event(revision),)
            reply = await cache.apply(KEY, "writer", tag(revision - 1), tag(revision), new, None, 0)
            assert reply is ApplyReply.APPLIED
            found = (await hit(cache)).content
            check_window(found, content(revision, revision))
            assert first <= len(found.events) < first + chunks.CHUNK

    async def test_many_events_in_one_apply(self, cache: SessionCache, limits: CacheLimits) -> None:
        """One append may carry more than a window."""
        last = 3 + 2 * limits.window_events
        await fill(cache, content(3, 3))
        new = events(4, last)
        assert await cache.apply(KEY, "writer", tag(3), tag(last), new, None, 0) is ApplyReply.APPLIED
        found = (await hit(cache)).content
        check_window(found, content(last, last))
        assert limits.window_events <= len(found.events) < limits.window_events + chunks.CHUNK

    async def test_bytes_bound_a_fill(self, cache: SessionCache, limits: CacheLimits) -> None:
        """I8: the newest events that fit, down to none at all."""
        for size, most in ((limits.window_bytes // 4, 3), (limits.window_bytes, 0)):
            whole = Content(tag(8), b"{}", tuple(event(seq, size) for seq in range(1, 9)))
            await fill(cache, whole)
            found = (await hit(cache)).content
            check_window(found, whole)
            assert len(found.events) == most
            await cache.drop(KEY, None, None)

    async def test_bytes_bound_the_window_to_single_events(
        self, cache: SessionCache, limits: CacheLimits
    ) -> None:
        """An event too large ends the window there; the next begins a new one."""
        await fill(cache, content(2, 2, complete=False, before=None))
        big = event(3, limits.window_bytes - 100)
        assert await cache.apply(KEY, "writer", tag(2), tag(3), (big,), None, 0) is ApplyReply.APPLIED
        found = (await hit(cache)).content
        assert found.events == (event(2), big) or found.events == (big,)
        assert (found.complete, found.before) == (False, None)
        huge = event(4, limits.window_bytes)
        assert await cache.apply(KEY, "writer", tag(3), tag(4), (huge,), None, 0) is ApplyReply.APPLIED
        assert (await hit(cache)).content.events == ()
        assert await cache.apply(KEY, "writer", tag(4), tag(5), (event(5),), None, 0) is ApplyReply.APPLIED
        assert (await hit(cache)).content == Content(tag(5), b'{"a":1}', (event(5),), False, None)

    @pytest.mark.parametrize("times", [(2**53, 2**53 + 1), (-(2**53) - 1, -(2**53)), (-1, 2), (-20, -3)])
    async def test_timestamps_compare_exactly(
        self, cache: SessionCache, limits: CacheLimits, times: tuple[int, int]
    ) -> None:
        """`before` is the greatest timestamp left out, to the microsecond (R21)."""
        first = limits.window_events
        last = first + 2 * chunks.CHUNK
        log = tuple(event(seq)._replace(timestamp=times[seq % 2]) for seq in range(1, first + 1))
        await fill(cache, Content(tag(first), b'{"a":1}', log))
        new = events(first + 1, last)
        assert await cache.apply(KEY, "writer", tag(first), tag(last), new, None, 0) is ApplyReply.APPLIED
        found = (await hit(cache)).content
        check_window(found, Content(tag(last), b'{"a":1}', (*log, *new)))
        assert found.before == times[1]
