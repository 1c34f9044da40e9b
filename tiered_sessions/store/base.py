"""The contract of a store: the record of every session, in SQL."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from ..records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Kind,
    Listing,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tags,
)


class StoreWriter(Protocol):
    """A checked-out connection, for one unit of work.

    Each method is one transaction and answers with an outcome; it raises nothing but programming
    errors. What it returns is a coroutine, or an `Uncut` of a statement that somebody else performs.
    `outbox` names the scopes whose invalidation is recorded in the same transaction.
    """

    def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> Awaitable[AppendOutcome]:
        """Stores `append` if the session's tag is `append.expected` (consistency.md 5.2)."""
        ...

    def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> Awaitable[CreateOutcome]:
        """Inserts a session, and the rows of its shared scopes where they are missing.

        Answers `Expired` only without `create.replace_expired`.
        """
        ...

    def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Awaitable[DeleteOutcome]:
        """Deletes a session and its events; false if there was none (`only_expired`: or it lives)."""
        ...

    async def release(self) -> None:
        """Gives the connection back. Safe to repeat."""
        ...


class SessionStore(Protocol):
    """One database. Reads raise `StoreUnavailableError` (or another `StoreError`).

    A session that has expired by the database's clock is not there, but for `expired` and `delete`.
    """

    exclusive: bool
    """Whether no other process can reach the data (`:memory:`)."""

    async def prepare(self) -> None:
        """Makes or adopts the tables. Safe to repeat and to run in many processes at once."""
        ...

    async def namespace(self) -> str:
        """Reads the cache namespace of this database."""
        ...

    async def reset_namespace(self) -> str:
        """Changes the cache namespace to a new random one, which orphans every entry; returns it."""
        ...

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        """Reads session and shared scopes at one moment (R32), with the events `query` asks for.

        `complete` and `before` of the session's content describe what lies before its events. With
        a `query.after` the events are not a tail of the log for certain, and `complete` is false.
        """
        ...

    async def older(self, key: SessionKey, before_seq: int, query: Query) -> Older | None:
        """Reads the events older than `before_seq` that `query` asks for, and the tag with them."""
        ...

    async def tags(self, key: SessionKey) -> Tags:
        """Reads the tags of the three scopes by one statement."""
        ...

    async def sessions(self, app_name: str, user_id: str | None) -> Listing:
        """Reads all sessions of an app, or of one user, without events; conformance 39 order."""
        ...

    async def keys(
        self, after: SessionKey | None, limit: int, app_name: str | None = None, user_id: str | None = None
    ) -> Sequence[SessionKey]:
        """Reads up to `limit` keys after `after`, in the database's order: of an app, of its user, or all.

        Under a collation that takes look-alikes for equal, theirs are among them.
        """
        ...

    async def count(self, app_name: str, user_id: str | None) -> int:
        """Counts the sessions of an app, or of one user."""
        ...

    async def expired(self, limit: int) -> Sequence[SessionKey]:
        """Reads which sessions have expired and are not deleted yet, the longest expired first."""
        ...

    async def user_state(self, app_name: str, user_id: str) -> bytes:
        """Reads one user's state, `{}` if there is none."""
        ...

    async def writer(self, *, grouped: Kind | None = None) -> StoreWriter:
        """Checks out a connection. Raises `PoolTimeoutError` or `StoreUnavailableError`.

        `grouped`: for one write of this kind that is `shareable`, which may then be performed with
        others' by one statement. One that was brought is carried out even if its caller is cancelled.
        """
        ...

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        """Reads recorded invalidations, without locks."""
        ...

    async def outbox_done(self, rows: Sequence[OutboxRow]) -> None:
        """Deletes recorded invalidations whose stamp is still the one seen."""
        ...

    async def close(self) -> None:
        """Closes the connections this object opened."""
        ...
