"""How a caller's session object is written through: stored first, then shown in the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Generic

from .binding import Binding
from .conversions import delta_of, document, microseconds, now, whole_state
from .errors import SessionNotFoundError, StaleSessionError
from .key_locks import KeyLocks
from .likes import EventT, SessionT
from .rebase import missed
from .records import Already, Append, Committed, NewEvent, Query, SessionKey, Tag
from .shared_events import SharedEvents
from .state import Scopes, json_safe, merge, split, temporary
from .wiring import Wiring

# No row has this tag: the next append of a session that carries it is stale.
_OUTDATED: Final = Tag(1, -1, 0, -1)
# How often an append is tried again, and how many events are looked at first to do so.
_REBASES: Final = 20
_CATCH_UP: Final = 50


class SessionWriter(Generic[SessionT, EventT]):
    """Stores what changes in a caller's session object, then makes the object what is stored.

    Writes to one session take turns: two at once through one object would expect the same tag, and one of
    them would be stale.

    Args:
        binding: Says how the object keeps its tag, and how an event is written.
        wiring: Has the tier.
        events: Makes the events an object lacks.
        rebases: Whether a stale object is brought up to date and the append tried again, instead of raising
            `StaleSessionError`.
    """

    def __init__(
        self,
        binding: Binding[SessionT, EventT],
        wiring: Wiring,
        events: SharedEvents[EventT],
        *,
        rebases: bool,
    ) -> None:
        self._binding = binding
        self._wiring = wiring
        self._events = events
        self._rebases = rebases
        self._locks = KeyLocks()

    async def append(self, session: SessionT, events: Sequence[EventT]) -> None:
        """Adds events and what they change in the state, together or not at all."""
        delta: dict[str, Any] = {}
        records = []
        for event in events:
            stored = self._binding._encode(event)
            if event.actions.state_delta:
                delta |= json_safe(event.actions.state_delta)
            records.append(
                NewEvent(event.id, event.invocation_id, microseconds(event.timestamp), document(stored))
            )
        key = SessionKey(session.app_name, session.user_id, session.id)
        async with self._locks.hold(key):
            written = await self._write(
                session, key, split(delta), records[-1].timestamp, tuple(records)
            )
            # Repeating an append that is in the object already must not show it twice.
            again = isinstance(written, Already)
            known = {event.id for event in session.events} if again else set()
            for event in events:
                if event.id not in known:
                    session.state.update(event.actions.state_delta)
                    session.events.append(event)

    async def merge_state(self, session: SessionT, delta: Mapping[str, Any]) -> None:
        """Changes keys of the state, all scopes."""
        safe = json_safe(delta)
        key = SessionKey(session.app_name, session.user_id, session.id)
        async with self._locks.hold(key):
            await self._write(session, key, split(safe), now())
            session.state.update(safe)

    async def replace_state(self, session: SessionT, state: Mapping[str, Any]) -> None:
        """Makes `state` the session's whole own state; shared scopes are merged into."""
        safe = json_safe(state)
        scopes = split(safe)
        key = SessionKey(session.app_name, session.user_id, session.id)
        async with self._locks.hold(key):
            await self._write(session, key, scopes, now(), replace_state=True)
            shared = split(session.state)
            session.state = merge(
                scopes.session, shared.user | scopes.user, shared.app | scopes.app
            ) | temporary(safe)

    async def _write(
        self,
        session: SessionT,
        key: SessionKey,
        delta: Scopes,
        update_time: int,
        events: tuple[NewEvent, ...] = (),
        *,
        replace_state: bool = False,
    ) -> Committed | Already:
        """Stores, and makes the object's tag and time those of the row."""
        tag = self._binding._tag(session)
        append = Append(
            key,
            await self._guessed(session, key) if tag is None else tag,
            update_time,
            events,
            document(delta.session) if delta.session or replace_state else None,
            delta_of(delta.user),
            delta_of(delta.app),
            replace_state,
        )
        written = await self._stored(session, append)
        # Who holds the row's tag, or the last event, has missed nothing; who repeats an older event has.
        current = isinstance(written, Committed) or written.latest or written.tag == append.expected
        self._binding._set_tag(session, written.tag if current else _OUTDATED)
        session.last_update_time = written.tag.update_time / 1_000_000
        return written

    async def _stored(self, session: SessionT, append: Append) -> Committed | Already:
        rounds = _REBASES if self._rebases and not append.replace_state else 0
        for _ in range(rounds):
            try:
                return await self._wiring.tier().append(append)
            except StaleSessionError:
                append = replace(append, expected=await self._catch_up(session, append.key))
        return await self._wiring.tier().append(append)

    async def _catch_up(self, session: SessionT, key: SessionKey) -> Tag:
        """Adds to the object what others stored since it was loaded; returns its tag then.

        Events go to its end. Stored values win over the object's; keys only the object has stay.
        """
        read = _CATCH_UP
        held = {event.id for event in session.events}
        last = session.events[-1].id if session.events else None
        while True:
            found = await self._wiring.tier().get(key, Query(read))
            if found is None:
                raise SessionNotFoundError(f"Session {key.session_id} not found.")
            whole = len(found.session.events) < read
            events = missed(self._binding._tag(session), last, held, found.session, whole=whole)
            if events is not None:
                break
            read *= 4
        tag = found.session.tag
        added, state = self._events.of(key, tuple(events)), whole_state(found)
        # In place: agents under way hold these very containers.
        session.events.extend(added)
        session.state.update(state)
        session.last_update_time = tag.update_time / 1_000_000
        self._binding._set_tag(session, tag)
        return tag

    async def _guessed(self, session: SessionT, key: SessionKey) -> Tag:
        """Returns the tag to expect for an object made by hand, by stock ADK's rule.

        An answer from the cache may be old: then its tag is, and the append is stale.
        """
        found = await self._wiring.tier().get(key, Query(limit=1))
        if found is None:
            raise SessionNotFoundError(f"Session {key.session_id} not found.")
        newest = [event.id for event in found.session.events]
        held = [event.id for event in session.events[-1:]]
        later = found.session.tag.update_time > microseconds(session.last_update_time)
        return _OUTDATED if later and newest != held else found.session.tag
