"""The generic service that every front door is a binding of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from uuid import uuid4

from .binding import Binding, Translating
from .config import TieredConfig
from .conversions import (
    delta_of,
    document,
    milliseconds,
    now,
    object_of,
    query_of,
    rewinds,
    stored_event,
    whole_state,
    whole_states,
)
from .errors import ConfigurationError, InvalidValueError
from .likes import EventT, SessionT, WindowLike
from .metrics import Metrics
from .records import Create, EventRecord, Query, SessionKey, Snapshot
from .session_writer import SessionWriter
from .shared_events import SharedEvents
from .state import TEMP, json_safe, split, temporary
from .tier.ahead import Ahead
from .untracked import untrack, untrack_json
from .windows import Windows
from .wiring import Wiring

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .cache.base import SessionCache


_TOGETHER: Final = 32
"""Events whose JSON is in memory at a time."""


class BaseTieredSessionService(Binding[SessionT, EventT]):
    """Sessions in SQL with a cache in front, for the session and event types of a binding.

    Args:
        db_url: Address of the database; default: `TIERED_SESSIONS_DB_URL`, else `DATABASE_URL`, else the
            SQLite file `tiered_sessions.db` in the working directory.
        db_engine: An `AsyncEngine` of the caller instead; `close()` leaves it open.
        cache: Address of a Redis or Valkey, a `redis.asyncio` client, a `SessionCache`, "memory", or None
            for no cache; default: `TIERED_SESSIONS_REDIS_URL`, else `REDIS_URL`, else "memory".
        config: The numbers that may be tuned.
        metrics: Receives the counters.
        create_tables: Whether missing tables are made on first use.
        on_conflict: What an append does when others appended since the session was loaded: "raise"
            `StaleSessionError`, or "rebase": bring the caller's object up to date and append after them.
        **engine_options: For `create_async_engine` (`pool_size`, `max_overflow`, `echo`, ...).

    Raises:
        ConfigurationError: Something among these cannot be used.
    """

    def __init__(
        self,
        db_url: str | None = None,
        db_engine: AsyncEngine | None = None,
        *,
        cache: str | SessionCache | object | EllipsisType | None = ...,
        config: TieredConfig | None = None,
        metrics: Metrics | None = None,
        create_tables: bool = True,
        on_conflict: Literal["raise", "rebase"] = "raise",
        **engine_options: Any,
    ) -> None:
        if on_conflict not in ("raise", "rebase"):
            raise ConfigurationError(f'on_conflict must be "raise" or "rebase", not {on_conflict!r}')
        config = config or TieredConfig()
        sharing = self._sharing = config.shared_events != "off" and config.decoded_bytes > 0
        self._events = SharedEvents(
            lambda records: self._decoded(records, shared=sharing),
            config.decoded_bytes,
            shared=sharing,
            checked=config.shared_events == "check",
            # A default window looks for calls and summaries in it.
            keeps_json=config.default_window is not None,
        )
        self._wiring = Wiring(
            db_url, db_engine, cache, config, metrics, create_tables, engine_options, self._events
        )
        self._writer = SessionWriter(self, self._wiring, self._events, rebases=on_conflict == "rebase")
        self._translating = Translating(self)
        window = config.default_window
        self._windows = None if window is None else Windows(window)

    # --- sessions --------------------------------------------------------------------------------

    async def create_session(
        self,
        app_name: str,
        user_id: str,
        state: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        *,
        ttl: float | str | None = None,
        sliding: bool = False,
    ) -> SessionT:
        """Creates a session; `app:` and `user:` keys of `state` go to the shared scopes, `temp:` nowhere.

        Args:
            app_name: Kept verbatim, as are the other ids.
            user_id: Whose session it is.
            state: What it begins with.
            session_id: None: a new uuid4.
            ttl: Seconds, also as "3600s", after which there is no such session any more; None: it stays.
            sliding: Whether every append starts the `ttl` anew.

        Raises:
            SessionExistsError: The user has a session of this id that has not expired.
            InvalidValueError: An id, the state or `ttl` cannot be stored; nothing was written.
            CommitOutcomeUnknownError: The connection broke in the commit.
        """
        key = SessionKey(app_name, user_id, str(uuid4()) if session_id is None else session_id)
        with self._translating:
            scopes = split(json_safe(state or {}))
            create = Create(
                key,
                now(),
                document(scopes.session),
                delta_of(scopes.user),
                delta_of(scopes.app),
                milliseconds(ttl),
                sliding,
            )
            return self._assembled(await self._wiring.tier().create(create))

    async def get_session(
        self, app_name: str, user_id: str, session_id: str, config: WindowLike | None = None
    ) -> SessionT | None:
        """Reads a session: its whole state, and the events `config` asks for.

        Without `config`: all events, or those of the service's `default_window`.

        Returns:
            An object of the caller's own, or None if there is no such session.

        Raises:
            StoreUnavailableError: Neither tier may answer.
        """
        key = SessionKey(app_name, user_id, session_id)
        with self._translating:
            ahead = Ahead(self._assembled)
            if config is None and self._windows is not None:
                snapshot = await self._windowed(key, self._windows)
            else:
                # Who has every event decoded anew would have it done twice, if once in vain.
                early = ahead if self._sharing else None
                snapshot = await self._wiring.tier().get(key, query_of(config), early)
            return None if snapshot is None else ahead.of(snapshot)

    async def _windowed(self, key: SessionKey, windows: Windows) -> Snapshot | None:
        read: int | None = windows.read
        while True:
            snapshot = await self._wiring.tier().get(key, Query(read))
            if snapshot is None:
                return None
            give, read = windows.choose(key, snapshot.session, read)
            if give is not None:
                events = Query(give).select(snapshot.session.events)
                return replace(snapshot, session=replace(snapshot.session, events=events))

    async def _sessions(self, app_name: str, user_id: str | None) -> list[SessionT]:
        with self._translating:
            found = await self._wiring.tier().sessions(app_name, user_id)
            keys = map(SessionKey, repeat(app_name), found.user_ids, found.session_ids)
            listed = [
                self._session(key, state, [], tag.update_time / 1_000_000, tag)
                for key, state, tag in zip(keys, whole_states(found), found.tags, strict=True)
            ]
            for session in listed:
                # Each is eight objects, and the lists of some seconds are enough for a full collection.
                for part in (session, session.__dict__, session.events):
                    untrack(part)
                untrack_json(session.state)
            return listed

    async def count_sessions(self, app_name: str, user_id: str | None = None) -> int:
        """Counts the sessions of one user, or of all users of the app."""
        with self._translating:
            return await self._wiring.tier().count(app_name, user_id)

    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """Deletes a session and its events, not the shared state. An unknown id is no error."""
        with self._translating:
            await self._wiring.tier().delete(SessionKey(app_name, user_id, session_id))

    async def delete_expired(self) -> int:
        """Deletes what has expired now, instead of within `sweep_every`; returns how many sessions it was.

        Raises:
            StoreError: One of them could not be deleted.
        """
        with self._translating:
            return await self._wiring.tier().delete_expired()

    async def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """Reads what all sessions of a user share, keys without `user:`; empty if there is nothing."""
        with self._translating:
            return object_of(await self._wiring.tier().user_state(app_name, user_id))

    # --- writing to a session --------------------------------------------------------------------

    async def append_event(self, session: SessionT, event: EventT) -> EventT:
        """Stores an event and its state changes, durably, and brings `session` up to date.

        A `partial` event is returned untouched. `temp:` keys of its delta go to `session.state` and out of
        the delta, even if storing fails. An event that is stored already, with the same id and content, is
        not stored twice.

        Raises:
            StaleSessionError: The stored session was changed since `session` was loaded; nothing was written.
            SessionNotFoundError: There is no such session.
            EventIdConflictError: An event of this id with other content is stored.
            InvalidValueError: The event cannot be stored; nothing was written.
            CommitOutcomeUnknownError: It may be stored: append the same event again.
        """
        await self.append_events(session, (event,))
        return event

    async def append_events(self, session: SessionT, events: Sequence[EventT]) -> list[EventT]:
        """Stores several events together or not at all; otherwise as `append_event`."""
        whole = [event for event in events if not event.partial]
        for event in whole:
            if not event.id:
                event.id = str(uuid4())
            self._keep_temporary(session, event)
        if whole:
            with self._translating:
                if self._windows is not None and any(rewinds(event) for event in whole):
                    await self._refuse_part(session)
                await self._writer.append(session, whole)
        return list(events)

    async def _refuse_part(self, session: SessionT) -> None:
        # Who computes a rewind from part of the history sets every key it does not see to None.
        held = len(session.events)
        key = SessionKey(session.app_name, session.user_id, session.id)
        found = await self._wiring.tier().get(key, Query(held + 1))
        if found is not None and len(found.session.events) > held:
            raise InvalidValueError(
                "A rewind needs the whole history, and this session object holds only the default window "
                "of it; nothing was written. Rewind through a service without default_window"
            )

    def _keep_temporary(self, session: SessionT, event: EventT) -> None:
        delta = event.actions.state_delta
        kept = temporary(delta)
        if kept:
            session.state.update(kept)
            event.actions.state_delta = {k: v for k, v in delta.items() if not k.startswith(TEMP)}

    async def merge_state(self, session: SessionT, delta: Mapping[str, Any]) -> None:
        """Changes keys of the state, all scopes, without an event. Errors as `append_event`."""
        with self._translating:
            await self._writer.merge_state(session, delta)

    async def replace_state(self, session: SessionT, state: Mapping[str, Any]) -> None:
        """Makes `state` the session's whole own state; shared scopes are merged into. Without an event."""
        with self._translating:
            await self._writer.replace_state(session, state)

    # --- life cycle ------------------------------------------------------------------------------

    @property
    def db_engine(self) -> AsyncEngine:
        """The SQLAlchemy engine of the running event loop (before there is one: of the first)."""
        return self._wiring.engine

    async def prepare_tables(self) -> None:
        """Makes the tables, or adopts stock ADK's, now instead of on first use. Safe to repeat."""
        with self._translating:
            await self._wiring.tier().prepare()

    async def flush(self) -> None:
        """Waits until the cache has been told of every write that returned."""
        await self._wiring.flush()

    async def close(self) -> None:
        """Flushes within `close_timeout`, ends background tasks and closes what the service opened."""
        await self._wiring.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- from records to the caller's objects ----------------------------------------------------

    def _decoded(self, records: Sequence[EventRecord], *, shared: bool) -> list[EventT]:
        events: list[EventT] = []
        for start in range(0, len(records), _TOGETHER):
            # First the JSON of many, then their events: what is read together later lies together in memory,
            # which saves a reader who looks at each a quarter of the time.
            stored = [stored_event(record) for record in records[start : start + _TOGETHER]]
            events += [self._decode(one, shared=shared) for one in stored]
        return events

    def _assembled(self, snapshot: Snapshot) -> SessionT:
        content = snapshot.session
        events = self._events.of(snapshot.key, content.events) if content.events else []
        updated = content.tag.update_time / 1_000_000
        return self._session(snapshot.key, whole_state(snapshot), events, updated, content.tag)
