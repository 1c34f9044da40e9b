"""Performs one command, or answers one question, of the protocol: what performer.py does, without waiting."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from tests.protocol.actors import Actor
from tests.protocol.toy_sql import Sql
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.records import Older
from tiered_sessions.tier import steps


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory cache must not wait")


def perform(command: Any, cache: MemoryCache, sql: Sql) -> Any:
    """Executes `command`; returns its reply."""
    match command:
        case steps.LookUp(keys, newest):
            return done(cache.lookup(keys, newest))
        case steps.Intent(scope, token):
            return done(cache.intent(scope, token))
        case steps.Release(scope, token):
            return done(cache.release(scope, token))
        case steps.Lease(scope, token):
            return done(cache.lease(scope, token))
        case steps.Fill(scope, token, granted, content, expires):
            at, stamp = granted.granted_at, granted.stamp
            return done(cache.fill(scope, token, at, stamp, content, expires))
        case steps.Apply():
            return done(cache.apply(*command))
        case steps.Drop(scope, token, keep):
            return done(cache.drop(scope, token, keep))
        case steps.Touch(scope, tag, at, stamp):
            return done(cache.touch(scope, tag, at, stamp))
        case steps.Elect():
            return done(cache.elect("me", 1000))
        case steps.Load(key, _):
            return sql.load(key)
        case steps.LoadOlder(key, before, _):
            row = sql.rows.get(key.session)
            return row and Older(row.tag, tuple(e for e in row.events if e.seq < before), True)
        case steps.ReadTags(key):
            return sql.tags(key)
        case steps.Checkout():
            return None
        case steps.Write(operation, outbox):
            return sql.write(operation, outbox)
        case steps.ReadExpired():
            return sql.expired()
        case steps.ReadOutbox():
            return list(sql.outbox.values())
        case steps.ForgetOutbox(rows):
            return sql.forget(rows)
    raise AssertionError(command)


def answer(question: Any, actor: Actor) -> Any:
    """Answers `question` for one call."""
    floors, known = actor.process.floors, actor.process.known
    match question:
        case steps.Began():
            return floors.began()
        case steps.Judge(scopes, tags):
            return 0, floors.standings(scopes, tags)
        case steps.Served(scopes, tags):
            return floors.served(scopes, tags)
        case steps.Observed(scope, tag, began):
            return floors.observed(scope, tag, began)
        case steps.Wrote(scope, tag):
            return floors.wrote(scope, tag)
        case steps.Known(key):
            return known.get(key)
        case steps.Keep(key, content):
            if key not in known or not content.part_of(known[key]):
                known[key] = content
            return None
        case steps.Young():
            return True
        case steps.Seal():
            if actor.flight is not None:
                actor.flight.sealed = True
            return None
    raise AssertionError(question)
