"""`tiered-sessions verify`: compares what the cache holds with SQL."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..cache.base import Unavailable
from ..cache.redis import RedisSessionCache
from ..config import TieredConfig
from ..errors import CacheError, ConfigurationError, StoreError
from ..records import ScopeKey, SessionKey
from ..store.store import SqlSessionStore
from ..tier.verifier import Finding, Verdict, Verifier
from ..urls import normalise_cache_url, redact
from .cache import database_address, opened_store

_PAGE: Final = 500
_AT_ONCE: Final = 8
_LISTED: Final = 1000


@dataclass(frozen=True)
class Chosen:
    """Which sessions to compare: of an app, of its user, one, or all; at most `limit`."""

    app: str | None
    user: str | None
    session: str | None
    limit: int | None

    def __post_init__(self) -> None:
        if (self.session is not None and self.user is None) or (self.user is not None and self.app is None):
            raise ConfigurationError("--session needs --user, and --user needs --app")

    @property
    def one(self) -> SessionKey | None:
        """The session, if it is one."""
        if self.app is None or self.user is None or self.session is None:
            return None
        return SessionKey(self.app, self.user, self.session)

    def holds(self, key: SessionKey) -> bool:
        """Says whether a key that SQL took for one of these is one (R34)."""
        return self.app in (None, key.app_name) and self.user in (None, key.user_id)


@dataclass
class Report:
    """What was found so far. `differences` are listed up to a bound, `counts` are of all."""

    sessions: int = 0
    counts: Counter[Verdict] = field(default_factory=Counter)
    differences: list[tuple[Finding, bool | None]] = field(default_factory=list)

    def add(self, finding: Finding, repaired: bool | None) -> None:
        """Adds one entry; `repaired` None: not tried."""
        self.counts[finding.verdict] += 1
        if finding.different and len(self.differences) < _LISTED:
            self.differences.append((finding, repaired))

    @property
    def different(self) -> int:
        """How many entries differ."""
        return self.counts[Verdict.STALE] + self.counts[Verdict.WRONG]

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.different else 2 if self.counts[Verdict.UNREACHABLE] else 0


def verify_command(
    db: Annotated[
        str | None, typer.Option(help="Database URL; else TIERED_SESSIONS_DB_URL or DATABASE_URL.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Cache URL; else TIERED_SESSIONS_REDIS_URL or REDIS_URL.")
    ] = None,
    app: Annotated[str | None, typer.Option(help="Only the sessions of this app.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user of the app.")] = None,
    session: Annotated[str | None, typer.Option(help="Only this session, be it in SQL or not.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many sessions.")] = None,
    max_staleness: Annotated[
        float, typer.Option(min=0, help="Seconds, as the services have it.")
    ] = TieredConfig().max_staleness or 0.0,
    repair: Annotated[bool, typer.Option("--repair", help="Drop the entries that differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every cached session, user state and app state with SQL, beside running services.

    Changes nothing without `--repair`. Exit status: 0 all equal, 1 some differ (repaired or not), 2 not
    all could be compared.
    """
    url, server = database_address(db), _cache_address(cache)
    chosen = Chosen(app, user, session, limit)
    report = asyncio.run(_verify(url, server, chosen, max_staleness, repair=repair, quiet=as_json))
    if as_json:
        typer.echo(json.dumps({"database": redact(url), "cache": redact(server), **_as_json(report)}))
    else:
        _print(report)
    raise typer.Exit(report.status)


def _cache_address(cache: str | None) -> str:
    url = cache or os.environ.get("TIERED_SESSIONS_REDIS_URL") or os.environ.get("REDIS_URL")
    if not url or url in ("memory", "none"):
        raise ConfigurationError(
            "Name the shared cache: --cache URL, or TIERED_SESSIONS_REDIS_URL in the environment. One in the "
            "process is checked against SQL at every read"
        )
    return normalise_cache_url(url)


async def _verify(
    url: str, server: str, chosen: Chosen, max_staleness: float, *, repair: bool, quiet: bool
) -> Report:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    async with opened_store(url) as store:
        cache = RedisSessionCache(server)
        try:
            cache.namespace = await store.namespace()
            now = await cache.probe()
            if isinstance(now, Unavailable):
                raise CacheError(f"{redact(server)} does not answer: {now.reason}")
            verifier = Verifier(cache, store.load, round(max_staleness * 1000))
            report = Report()
            with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
                task = bar.add_task("sessions compared", total=None)
                async for page in _pages(store, chosen):
                    if not await _compare(verifier, page, report, repair=repair):
                        break
                    bar.update(task, completed=report.sessions)
            if await store.namespace() != cache.namespace:
                # What looked old may be an orphan.
                raise StoreError("The cache was reset while this looked at it; run it again")
            return report
        finally:
            await cache.close()


async def _pages(
    store: SqlSessionStore, chosen: Chosen
) -> AsyncIterator[list[tuple[SessionKey, list[ScopeKey]]]]:
    """Yields sessions, each with the scopes that no session before it has."""
    if chosen.one is not None:
        yield [(chosen.one, list(chosen.one.scopes))]
        return
    left = chosen.limit
    last: SessionKey | None = None
    seen: tuple[ScopeKey, ...] = ()
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        found = await store.keys(last, size, chosen.app, chosen.user)
        page = []
        for key in filter(chosen.holds, found):
            # In the order of the keys, those of a user follow each other.
            page.append((key, [scope for scope in key.scopes if scope not in seen]))
            seen = key.scopes
        yield page
        if len(found) < size:
            return
        last = found[-1]
        left = None if left is None else left - len(page)


async def _compare(
    verifier: Verifier,
    page: Sequence[tuple[SessionKey, list[ScopeKey]]],
    report: Report,
    *,
    repair: bool,
) -> bool:
    """Compares a page; false if the cache answered nothing of it."""
    turn = asyncio.Semaphore(_AT_ONCE)
    answered = not page

    async def compare(key: SessionKey, scopes: list[ScopeKey]) -> None:
        nonlocal answered
        async with turn:
            findings = await verifier.compare(key, scopes)
            for finding in findings:
                repaired = await verifier.repair(finding) if repair and finding.different else None
                report.add(finding, repaired)
        report.sessions += 1
        answered = answered or any(finding.verdict is not Verdict.UNREACHABLE for finding in findings)

    try:
        async with asyncio.TaskGroup() as group:
            for each in page:
                group.create_task(compare(*each))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return answered


# --- printing --------------------------------------------------------------------------------


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "status": report.status,
        "sessions": report.sessions,
        "counts": {verdict.value: report.counts[verdict] for verdict in Verdict},
        "differences": [
            {
                **finding.scope._asdict(),
                "verdict": finding.verdict.value,
                "reason": finding.reason,
                "age": finding.age / 1000,
                "allowed_for": finding.allowed / 1000,
                "cached": finding.cached,
                "stored": finding.stored,
                "repaired": repaired,
            }
            for finding, repaired in report.differences
        ],
    }


def _print(report: Report) -> None:
    for line in _lines(report):
        typer.echo(line)


def _lines(report: Report) -> Iterator[str]:
    for finding, repaired in report.differences:
        fate = {None: "", True: "; dropped", False: "; could not be dropped"}[repaired]
        yield f"{_name(finding.scope)}: {_text(finding)}{fate}"
    if report.different > len(report.differences):
        yield f"... and {report.different - len(report.differences)} more"
    counts = ", ".join(
        f"{report.counts[verdict]} {verdict.value}" for verdict in Verdict if report.counts[verdict]
    )
    yield f"{report.sessions} sessions looked at; entries: {counts or 'none'}"
    if report.counts[Verdict.WRONG]:
        yield "A wrong entry may live on in the memory of a service: also run `tiered-sessions cache reset`."


def _name(scope: ScopeKey) -> str:
    return f"{scope.kind} {' / '.join(repr(part) for part in scope[1:] if part)}"


def _text(finding: Finding) -> str:
    if finding.verdict is Verdict.WRONG:
        return f"WRONG CONTENT at the tag SQL has: {finding.reason}"
    text = f"stale, last known equal {finding.age / 1000:.1f} s ago ({finding.reason})"
    if finding.allowed:
        return f"{text}; allowed until {finding.allowed / 1000:.1f} s from now"
    return f"{text}; beyond the bound, the next read checks it"
