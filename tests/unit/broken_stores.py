"""Stores with one mistake each, under the public suite; test_testing.py runs this and reads the result."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.conformance.store_backends import CONFIG
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Conflict,
    Create,
    Exists,
    Failed,
    Kind,
    Listing,
    Missing,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tags,
)
from tiered_sessions.store.base import StoreWriter
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.testing import StoreSuite


class Broken(SqlSessionStore):
    """`caught_by`: the rule that is about this mistake."""

    caught_by = ""

    async def writer(self, *, grouped: Kind | None = None) -> Any:
        return Writer(self, await super().writer(grouped=grouped))

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.append(write, outbox)

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(write, outbox)

    async def delete(
        self, inner: StoreWriter, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool
    ) -> Any:
        return await inner.delete(key, outbox, only_expired=only_expired)

    async def release(self, inner: StoreWriter) -> None:
        await inner.release()


class Writer:
    def __init__(self, store: Broken, inner: StoreWriter) -> None:
        self.store = store
        self.inner = inner

    async def append(self, write: Append, outbox: Sequence[ScopeKey] = ()) -> Any:
        return await self.store.append(self.inner, write, outbox)

    async def create(self, write: Create, outbox: Sequence[ScopeKey] = ()) -> Any:
        return await self.store.create(self.inner, write, outbox)

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Any:
        return await self.store.delete(self.inner, key, outbox, only_expired)

    async def release(self) -> None:
        await self.store.release(self.inner)


# --- create --------------------------------------------------------------------------------------


class CreateForgetsTheState(Broken):
    caught_by = "test_what_was_created_is_loaded"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, state=b"{}"), outbox)


class CreateMovesEveryScope(Broken):
    caught_by = "test_create_makes_missing_scope_rows_and_keeps_present_ones"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, user_delta=write.user_delta or b"{}"), outbox)


class CreateReplaces(Broken):
    caught_by = "test_an_id_is_created_once_and_the_second_writes_nothing"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        await inner.delete(write.key)
        return await inner.create(write, outbox)


class CreateSaysNothingOfLosing(Broken):
    caught_by = "test_of_concurrent_creates_one_wins"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        outcome = await inner.create(write, outbox)
        return await self.load(write.key, Query()) if isinstance(outcome, Exists) else outcome


class CreateLosesSharedState(Broken):
    caught_by = "test_concurrent_creates_lose_no_shared_state"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, app_delta=None), outbox)


# --- append --------------------------------------------------------------------------------------


class AppendAnswersTheDelta(Broken):
    caught_by = "test_what_an_append_answers_is_what_a_load_returns"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        outcome = await inner.append(write, outbox)
        return replace(outcome, state=write.session_delta) if isinstance(outcome, Committed) else outcome


class AppendTouchesEveryScope(Broken):
    caught_by = "test_scopes_without_a_delta_are_not_touched"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.append(replace(write, user_delta=write.user_delta or b"{}"), outbox)


class ReplaceMerges(Broken):
    caught_by = "test_a_state_only_append_takes_one_revision"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.append(replace(write, replace_state=False), outbox)


class AppendDoesNotCompare(Broken):
    caught_by = "test_of_concurrent_appends_to_one_tag_one_wins"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.append(replace(write, expected=None), outbox)


class AppendComparesRevisionsOnly(Broken):
    caught_by = "test_stale_and_missing_write_nothing"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        now = (await self.tags(write.key)).session
        if now and write.expected and now.revision == write.expected.revision:
            write = replace(write, expected=now)
        return await inner.append(write, outbox)


class ADuplicateIsStale(Broken):
    caught_by = "test_an_event_is_stored_once"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        outcome = await inner.append(write, outbox)
        return Stale(outcome.tag) if isinstance(outcome, Already) else outcome


class AConflictIsADuplicate(Broken):
    caught_by = "test_an_event_id_with_other_content_is_a_conflict"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        outcome = await inner.append(write, outbox)
        tag = (await self.tags(write.key)).session
        return Already(tag, latest=True) if isinstance(outcome, Conflict) and tag else outcome


class TheLastOfEqualIdsIsKept(Broken):
    caught_by = "test_an_id_twice_in_one_append"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        events = tuple({event.id: event for event in write.events}.values())
        return await inner.append(replace(write, events=events), outbox)


class NoComparisonIsStale(Broken):
    caught_by = "test_concurrent_appends_without_comparison_all_succeed"
    turn = 0

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        tag = (await self.tags(write.key)).session
        return await inner.append(replace(write, expected=write.expected or tag), outbox)


# --- delete, outbox, writer ----------------------------------------------------------------------


class DeleteAlwaysSucceeds(Broken):
    caught_by = "test_delete"

    async def delete(self, *arguments: Any) -> Any:
        await super().delete(*arguments)
        return True


class NothingIsRecorded(Broken):
    caught_by = "test_invalidations_are_recorded_in_the_same_transaction"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.append(write)


class DoneIgnoresTheStamp(Broken):
    caught_by = "test_invalidations_are_recorded_in_the_same_transaction"

    async def outbox_done(self, rows: Sequence[OutboxRow]) -> None:
        scopes = {row.scope for row in rows}
        await super().outbox_done([row for row in await self.outbox(1_000) if row.scope in scopes])


class CompanyIsNotCompared(Broken):
    caught_by = "test_appends_at_once_have_an_outcome_each"

    async def writer(self, *, grouped: Kind | None = None) -> Any:
        writer = await super().writer(grouped=grouped)
        if grouped:
            compared = writer.append
            writer.append = lambda write: compared(replace(write, expected=None))
        return writer


class AWriterIsReleasedOnce(Broken):
    caught_by = "test_a_writer_does_several_units_and_is_released_twice"

    async def writer(self, *, grouped: Kind | None = None) -> Any:
        writer = await super().writer(grouped=grouped)
        writer.released = False
        release = writer.release

        async def once() -> None:
            assert not writer.released
            writer.released = True
            await release()

        writer.release = once
        return writer


# --- reads ---------------------------------------------------------------------------------------


class EveryLoadIsWhole(Broken):
    caught_by = "test_windows"

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        return await super().load(key, Query())


class OlderIncludesItsBound(Broken):
    caught_by = "test_older_events"

    async def older(self, key: SessionKey, before_seq: int, query: Query) -> Any:
        return await super().older(key, before_seq + 1, query)


class TagsNeedASession(Broken):
    caught_by = "test_tags"

    async def tags(self, key: SessionKey) -> Tags:
        found = await super().tags(key)
        return found if found.session else Tags(None, None, None)


class NobodyIsAnybody(Broken):
    caught_by = "test_lists_and_counts"

    async def sessions(self, app_name: str, user_id: str | None) -> Listing:
        return await super().sessions(app_name, user_id or None)


class ANewNamespaceEachTime(Broken):
    caught_by = "test_the_namespace_stays"

    async def namespace(self) -> str:
        return uuid.uuid4().hex


class IdsIgnoreCase(Broken):
    caught_by = "test_ids_that_look_alike_are_different"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        key = write.key._replace(session_id=write.key.session_id.lower())
        return await inner.create(replace(write, key=key), outbox)


# --- expiry --------------------------------------------------------------------------------------


class LivesInSeconds(Broken):
    caught_by = "test_a_store_says_how_long_a_session_has"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, ttl=write.ttl and max(1, write.ttl // 1_000)), outbox)


class EveryLifeSlides(Broken):
    caught_by = "test_an_append_moves_the_expiry_only_where_it_slides"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, sliding=write.ttl is not None), outbox)


class AnAppendToNobodyIsStale(Broken):
    caught_by = "test_an_expired_session_is_not_there"

    async def append(self, inner: StoreWriter, write: Append, outbox: Sequence[ScopeKey]) -> Any:
        outcome = await inner.append(write, outbox)
        if isinstance(outcome, Missing) and write.expected is not None:
            return Stale(write.expected)
        return outcome


class EveryCreateReplaces(Broken):
    caught_by = "test_only_an_expired_session_makes_way"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        return await inner.create(replace(write, replace_expired=True), outbox)


class AReplacementRefusesItself(Broken):
    caught_by = "test_of_concurrent_replacements_one_wins"

    async def create(self, inner: StoreWriter, write: Create, outbox: Sequence[ScopeKey]) -> Any:
        if write.replace_expired:
            return Failed(RuntimeError("not today"))
        return await inner.create(write, outbox)


class ASweepDeletesWhatLives(Broken):
    caught_by = "test_a_sweep_deletes_only_what_is_still_expired"

    async def delete(
        self, inner: StoreWriter, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool
    ) -> Any:
        return await inner.delete(key, outbox)


# --- under the suite -----------------------------------------------------------------------------

BROKEN = [
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Broken) and kind.caught_by
]


class TestBroken(StoreSuite):
    @pytest.fixture(params=[SqlSessionStore, *BROKEN], ids=lambda kind: kind.__name__)
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[SqlSessionStore]:
        engine = build_engine("sqlite+aiosqlite:///:memory:", CONFIG)
        store = request.param(engine, owns_engine=True, config=CONFIG)
        await store.prepare()
        yield store
        await store.close()
