"""The cache in Redis or Valkey: sends the scripts, maps replies and errors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, ResponseError

from ..records import Content, EventRecord, ScopeKey, Tag
from . import chunks, fields, keys
from .base import (
    ApplyReply,
    CacheLimits,
    FillReply,
    Granted,
    LeaseRefused,
    Lookup,
    Unavailable,
)
from .connections import FAULTS, Answers, Call, Connections, adopt
from .reads import Looked, Reads, reads, reads_again, reason, refusal, time_of
from .resp import Packed, pack_one
from .scripts import script
from .urls import connect

Words = tuple[Any, ...]
"""A key and the arguments of a script for it."""

_NO_TAG = ("",) * 4


def _jitter() -> float:
    return random.uniform(0.9, 1.1)


class RedisSessionCache:
    """A `SessionCache` that all servers share.

    Attributes:
        shared: True.
        hurry: Sends what was posted.
    """

    shared = True

    def __init__(
        self,
        url_or_client: str | Redis | RedisCluster,
        limits: CacheLimits | None = None,
        *,
        namespace: str = "",
        timeout: float = 1.0,
        max_connections: int = 2,
        jitter: Callable[[], float] = _jitter,
    ) -> None:
        """Prepares the connections; none is opened yet.

        Args:
            url_or_client: `redis://`, `rediss://`, `unix://`, `redis+cluster://`,
                `rediss+cluster://`, `redis+sentinel://host:port,host:port/service/db`,
                `rediss+sentinel://`; or a client of redis.asyncio, which stays the caller's.
            limits: Sizes and lives of entries.
            namespace: Part of every key.
            timeout: Seconds after which a call is given up, and a connection closed that has left
                one without an answer for so long.
            max_connections: Connections to one server. All callers share them: one for what is
                small, and, unless this is 1, one for whole entries.
            jitter: Draws the factor of each idle life.

        Raises:
            ConfigurationError: The URL cannot be read, or the client is of another kind.
        """
        self.limits = limits or CacheLimits()
        self.namespace = namespace
        self._jitter = jitter
        self._connections: Connections = (
            connect(url_or_client, timeout, max_connections)
            if isinstance(url_or_client, str)
            else adopt(url_or_client, timeout, max_connections)
        )
        self.hurry: Callable[[], None] = self._connections.hurry

    def lookup(
        self, keys: Sequence[ScopeKey], newest: int | None = None
    ) -> Coroutine[Any, Any, tuple[Lookup, ...]]:
        # Once: another namespace may begin while the answer is on its way.
        wanted = self._wanted(keys, newest)
        groups = self._connections.groups(wanted.names)
        if len(groups) == 1:
            return self._read(wanted)
        return self._read_from_several(wanted, groups)

    def _wanted(self, keys: Sequence[ScopeKey], newest: int | None) -> Reads:
        # By a script a third of a window costs the server more than all of it does by HGETALL.
        whole = newest is None or 3 * newest > self.limits.window_events
        # Of a session that is hot the header is read again and again, all of it once.
        return (reads_again if newest == 0 else reads)(self.namespace, tuple(keys), newest, whole)

    async def _read_from_several(self, wanted: Reads, groups: Sequence[Sequence[str]]) -> tuple[Lookup, ...]:
        parts = [wanted.some(group) for group in groups]
        found: dict[str, Lookup] = {}
        for part, looked in zip(parts, await asyncio.gather(*map(self._read, parts)), strict=True):
            found.update(zip(part.names, looked, strict=True))
        return tuple([found[name] for name in wanted.names])

    async def _read(self, wanted: Reads) -> tuple[Lookup, ...]:
        name, commands = wanted.names[0], wanted.commands
        try:
            stamp, replies = await self._connections.fly(name, commands)
            scripted = wanted.newest and not wanted.whole
            if scripted and any(isinstance(reply, NoScriptError) for reply in replies):
                # All is read again: what one lookup shows is of one moment, as far as it can be.
                stamp, replies = await self._connections.fly(name, wanted.with_text)
        except FAULTS as error:
            return wanted.failed(error)
        return wanted.found(stamp, replies)

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        reply = await self._run("intent", *self._intent(key, token))
        return reply if isinstance(reply, Unavailable) else int(reply)

    def _intent(self, key: ScopeKey, token: str) -> Words:
        return key, token, self.limits.mask_life

    async def release(self, key: ScopeKey, token: str) -> Unavailable | None:
        reply = await self._run("release", key, token)
        return reply if isinstance(reply, Unavailable) else None

    def _release(self, key: ScopeKey, token: str) -> Words:
        return key, token

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        scope, *words = self._lease(key, token)
        answers = await self._eval("lease", self._name(scope), *words)
        return answers if isinstance(answers, Unavailable) else _leased(answers.replies[0], answers.stamp)

    def _lease(self, key: ScopeKey, token: str) -> Words:
        return key, token, self.limits.lease_life

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        granted_at: int,
        stamp: str,
        content: Content,
        expires_at: int | None = None,
    ) -> FillReply | Unavailable:
        entry = fields.entry(content, stamp, self.limits, expires_at)
        reply = await self._run("fill", key, token, granted_at, *self._life(), *entry, bulk=True)
        return reply if isinstance(reply, Unavailable) else FillReply[reply.decode()]

    async def apply(
        self,
        key: ScopeKey,
        token: str,
        old: Tag | None,
        new: Tag,
        events: tuple[EventRecord, ...],
        state: bytes | None,
        validated_at: int,
        expires_at: int | None = None,
    ) -> ApplyReply | Unavailable:
        words = self._apply(key, token, old, new, events, state, validated_at, expires_at)
        reply = await self._run("apply", *words)
        return reply if isinstance(reply, Unavailable) else ApplyReply[reply.decode()]

    def _apply(
        self,
        key: ScopeKey,
        token: str,
        old: Tag | None,
        new: Tag,
        events: tuple[EventRecord, ...],
        state: bytes | None,
        validated_at: int,
        expires_at: int | None = None,
    ) -> Words:
        return (
            key,
            token,
            *(_NO_TAG if old is None else old),
            *new,
            int(state is not None),
            state or b"",
            validated_at,
            *self._life(),
            self.limits.window_events,
            self.limits.window_bytes,
            "" if expires_at is None else expires_at,
            *map(chunks.line, events),
        )

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Unavailable | None:
        reply = await self._run("drop", *self._drop(key, token, keep))
        return reply if isinstance(reply, Unavailable) else None

    def _drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Words:
        return (key, token or "", *(() if keep is None else fields.tag(keep)))

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        reply = await self._run("touch", key, *fields.tag(tag), validated_at, stamp, *self._life())
        return reply if isinstance(reply, Unavailable) else bool(reply)

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        answers = await self._eval("elect", keys.drain_key(self.namespace), owner, life)
        return answers if isinstance(answers, Unavailable) else bool(answers.replies[0])

    async def probe(self) -> int | Unavailable:
        answers = await self._fly(keys.drain_key(self.namespace), Packed([("TIME",)]))
        if isinstance(answers, Unavailable):
            return answers
        return refusal(answers.replies[0]) or time_of(answers.replies[0])

    async def close(self) -> None:
        await self._connections.close()

    def post(
        self, name: str, arguments: Sequence[Any], taker: Callable[[Any], Any]
    ) -> asyncio.Future[Any] | None:
        """Calls a method that makes a write, or looks up headers, without awaiting it; see `Posting`."""
        if name == "lookup":
            return self._post_lookup(self._wanted(*arguments), taker)
        scope, *words = _POSTED[name][0](self, *arguments)
        key = self._name(scope)
        call = _Posted(self._connections, name, (key, *words), taker)
        try:
            return call.future if self._connections.post(key, call) else None
        except FAULTS as error:
            call.fail(error)
            return call.future

    def _post_lookup(self, wanted: Reads, taker: Callable[[Any], Any]) -> asyncio.Future[Any] | None:
        if wanted.commands.bulk:
            return None
        call = Looked(wanted, taker)
        try:
            return call.future if self._connections.post(wanted.names[0], call) else None
        except FAULTS as error:
            call.fail(error)
            return call.future

    # --- inside -------------------------------------------------------------------------------

    def _name(self, key: ScopeKey) -> str:
        return keys.entry_key(self.namespace, key)

    def _life(self) -> tuple[int, int]:
        return int(self.limits.idle_ttl * self._jitter()), self.limits.max_age

    async def _run(self, name: str, key: ScopeKey, *arguments: str | bytes | int, bulk: bool = False) -> Any:
        answers = await self._eval(name, self._name(key), *arguments, bulk=bulk)
        return answers if isinstance(answers, Unavailable) else answers.replies[0]

    async def _eval(
        self, name: str, key: str, *arguments: str | bytes | int, bulk: bool = False
    ) -> Answers | Unavailable:
        """Runs a script. It is sent again only if the server said that it did not know it."""
        text, sha = script(name)
        answers = await self._fly(key, Packed([("EVALSHA", sha, 1, key, *arguments)], bulk=bulk))
        if not isinstance(answers, Unavailable) and isinstance(answers.replies[0], NoScriptError):
            answers = await self._fly(key, Packed([("EVAL", text, 1, key, *arguments)], bulk=bulk))
        return answers if isinstance(answers, Unavailable) else refusal(answers.replies[0]) or answers

    async def _fly(self, key: str, commands: Packed) -> Answers | Unavailable:
        try:
            return await self._connections.fly(key, commands)
        except FAULTS as error:
            return Unavailable(reason(error))


class _Posted(Call):
    """A script of which `taker` makes the future's result. It is sent again if the server did not know it."""

    __slots__ = ("_arguments", "_connections", "_known", "_name", "_taker")

    def __init__(
        self,
        connections: Connections,
        name: str,
        arguments: Words,
        taker: Callable[[Any], Any],
    ) -> None:
        super().__init__(None, pack_one(("EVALSHA", script(name).sha, 1, *arguments)))
        self._connections = connections
        self._name = name
        self._arguments = arguments
        self._taker = taker
        self._known = True

    def answer(self, stamp: str) -> None:
        reply = self.replies[0]
        result: Any
        if not isinstance(reply, ResponseError):
            try:
                result = _POSTED[self._name][1](reply, stamp)
            except (ValueError, TypeError, KeyError, AttributeError):
                result = Unavailable("the reply is not one of the script's")
        elif self._known and isinstance(reply, NoScriptError):
            self._again()
            return
        else:
            result = Unavailable(reason(reply))
        self._take(result)

    def fail(self, error: Exception) -> None:
        self._take(Unavailable(reason(error)))

    def _take(self, result: Any) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(self._taker(result))

    def _again(self) -> None:
        self._known = False
        self.packet = pack_one(("EVAL", script(self._name).text, 1, *self._arguments))
        self.replies = []
        if not self.left:
            try:
                self._connections.post(self._arguments[0], self)
            except FAULTS as error:
                self.fail(error)


def _leased(reply: Any, stamp: str) -> Granted | LeaseRefused:
    word, now = reply
    return Granted(int(now), stamp) if word == b"GRANTED" else LeaseRefused[word.decode()]


_POSTED: dict[str, tuple[Callable[..., Words], Callable[[Any, str], Any]]] = {
    "intent": (RedisSessionCache._intent, lambda reply, _: int(reply)),
    "release": (RedisSessionCache._release, lambda reply, _: None),
    "lease": (RedisSessionCache._lease, _leased),
    "apply": (RedisSessionCache._apply, lambda reply, _: ApplyReply[reply.decode()]),
    "drop": (RedisSessionCache._drop, lambda reply, _: None),
}
