"""`tiered-sessions doctor`: looks at both tiers and says how fresh a read is."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..cache.health import CacheHealth, look_at_cache
from ..config import TieredConfig
from ..errors import ConfigurationError, StoreError
from ..store.health import StoreHealth, look_at_store
from ..urls import normalise_cache_url, normalise_database_url, redact

Level = Literal["ok", "note", "warning", "error"]
_STATUS: dict[str, int] = {"ok": 0, "note": 0, "warning": 1, "error": 2}
_STYLE = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
_CONFIG = TieredConfig()


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str


def doctor_command(
    db: Annotated[
        str | None, typer.Option(help="Database URL; else TIERED_SESSIONS_DB_URL or DATABASE_URL.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Cache URL, `memory` or `none`; else TIERED_SESSIONS_REDIS_URL or REDIS_URL, else memory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what the database and the cache are like, and how old a read can be.

    Changes nothing. Exit status: 0 in order, 1 works but something should be seen to, 2 does not work.
    """
    db = db or os.environ.get("TIERED_SESSIONS_DB_URL") or os.environ.get("DATABASE_URL")
    if not db:
        raise ConfigurationError("Name the database: --db URL, or TIERED_SESSIONS_DB_URL in the environment")
    # Before anything is asked: a malformed address is the caller's mistake, not the server's state.
    normalise_database_url(db)
    cache = cache or os.environ.get("TIERED_SESSIONS_REDIS_URL") or os.environ.get("REDIS_URL") or "memory"
    if cache not in ("memory", "none"):
        cache = normalise_cache_url(cache)
    store, failure, server = asyncio.run(_look(db, cache))
    shared = server is not None
    findings = [Finding("error", "database", failure)] if store is None else list(_of_store(store, shared))
    findings += _of_cache(cache, server)
    if store is not None and not store.refused:
        findings.append(_bound(store, server))
    status = max(_STATUS[finding.level] for finding in findings)
    report = {
        "status": status,
        "database": redact(db),
        "cache": redact(cache),
        "findings": [asdict(finding) for finding in findings],
        "store": None if store is None else asdict(store),
        "server": None if server is None else asdict(server),
    }
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report, findings)
    raise typer.Exit(status)


async def _look(db: str, cache: str) -> tuple[StoreHealth | None, str, CacheHealth | None]:
    server = None if cache in ("memory", "none") else await look_at_cache(cache)
    try:
        return await look_at_store(db), "", server
    except StoreError as error:
        return None, str(error), server


# --- findings --------------------------------------------------------------------------------


def _of_store(store: StoreHealth, shared: bool) -> Iterator[Finding]:
    if store.refused:
        yield Finding("error", "schema", store.refused)
        return
    if store.rewrites:
        yield Finding(
            "error",
            "schema",
            f"{', '.join(store.rewrites)}: a start refuses this; run `tiered-sessions migrate`",
        )
    elif store.missing:
        yield Finding(
            "warning",
            "schema",
            f"not prepared: {len(store.missing)} steps are missing ({store.missing[0]}, ...); the first use "
            "of a service or `tiered-sessions migrate` makes them",
        )
    else:
        yield Finding("ok", "schema", f"version {store.version}, known")
    yield from _of_rows(store)
    yield _of_triggers(store, shared)
    yield from _of_outbox(store, shared)


def _of_rows(store: StoreHealth) -> Iterator[Finding]:
    found = store.adoption
    if found is None:
        return
    if found.foreign_sessions or found.foreign_states:
        yield Finding(
            "note",
            "adoption",
            f"{found.foreign_sessions} of {found.sessions} sessions and {found.foreign_states} app and user "
            "states were made by another program: they are served from SQL until their next append here, or "
            "until `tiered-sessions migrate`",
        )
    else:
        yield Finding("ok", "adoption", f"all {found.sessions} sessions")
    if found.waiting_events:
        yield Finding(
            "warning" if store.triggers else "note",
            "foreign events",
            f"{found.waiting_events} events of another program wait for a number; their sessions are served "
            "from SQL until their next append here, or until `tiered-sessions migrate`",
        )


def _of_triggers(store: StoreHealth, shared: bool) -> Finding:
    if store.triggers is None:
        return Finding("note", "triggers", f"there are none for {store.dialect}")
    if not store.triggers:
        if shared:
            return Finding("ok", "triggers", "installed")
        return Finding(
            "warning",
            "triggers",
            "installed, but nobody who runs without a shared cache drains what they record: configure one, "
            "or run `tiered-sessions migrate --remove`",
        )
    if len(store.triggers) < 5:
        return Finding(
            "warning", "triggers", f"not in force: {', '.join(store.triggers)}; install them again"
        )
    return Finding("note", "triggers", "not installed; needed only where another program writes these tables")


def _of_outbox(store: StoreHealth, shared: bool) -> Iterator[Finding]:
    found = store.outbox
    if found is None:
        return
    if not found.rows:
        yield Finding("ok", "outbox", "empty")
        return
    age = "" if found.age is None else f", the oldest written {found.age:.0f} s ago"
    if found.stuck:
        text = f"{found.rows} rows{age}; {found.stuck} were not drained while this looked"
        advice = ": no running service reaches both the database and the cache" if shared else ""
        yield Finding("warning", "outbox", text + advice)
    else:
        yield Finding("ok", "outbox", f"{found.rows} rows{age}, being drained")


def _of_cache(cache: str, server: CacheHealth | None) -> Iterator[Finding]:
    if server is None:
        private = "in each process; every hit is checked against SQL" if cache == "memory" else "none"
        yield Finding("ok", "cache", private)
        return
    if not server.reachable:
        yield Finding("warning", "cache", f"unreachable ({server.reason}); everything is served from SQL")
        return
    if not server.scripts:
        yield Finding("warning", "cache", "refuses scripts (EVAL), so that everything is served from SQL")
    elif not server.master:
        yield Finding("warning", "cache", "is a replica: give the address of the master")
    else:
        yield Finding("ok", "cache", f"reachable, version {server.version or 'not told'}")
    yield _of_memory(server)
    if server.stamped:
        yield Finding("ok", "server stamp", "INFO is allowed: a failover is noticed at once")
    else:
        yield Finding(
            "warning",
            "server stamp",
            "INFO is refused or names no server: after a failover that loses data a read may be as old as "
            f"max_staleness ({_seconds(_CONFIG.max_staleness)} by default)",
        )


def _of_memory(server: CacheHealth) -> Finding:
    if not server.policy and server.maxmemory is None:
        return Finding("note", "memory", "the server does not tell its eviction policy")
    if not server.maxmemory:
        return Finding(
            "note", "memory", f"no maxmemory, policy {server.policy}: keys leave only by their TTL"
        )
    bound = f"maxmemory {server.maxmemory / 2**20:.0f} MiB, policy {server.policy}"
    if server.policy == "noeviction":
        return Finding(
            "warning", "memory", f"{bound}: once full it refuses writes, and counts as unavailable; "
            "set allkeys-lru or volatile-lru"
        )  # fmt: skip
    return Finding("ok", "memory", bound)


def _bound(store: StoreHealth, server: CacheHealth | None) -> Finding:
    if server is None or not (server.reachable and server.scripts):
        return Finding("ok", "bound", "every read is checked against SQL: 0 s, whoever wrote")
    stale = f"max_staleness, {_seconds(_CONFIG.max_staleness)} by default"
    refused = "A stale append is refused at once."
    if store.triggers is not None and not store.triggers:
        poll = f"the outbox poll ({_seconds(_CONFIG.outbox_poll)} by default) while a service drains it"
        return Finding(
            "ok", "bound", f"writes of other programs are seen within {poll}, else within {stale}. {refused}"
        )
    return Finding(
        "ok",
        "bound",
        f"writes of other programs are seen within {stale}, unless they leave update_time as it was. "
        f"{refused}",
    )


def _seconds(value: float | None) -> str:
    return "no bound" if value is None else f"{value:g} s"


# --- printing --------------------------------------------------------------------------------


def _print(report: dict[str, Any], findings: list[Finding]) -> None:
    console = Console()
    # As text, not markup: an address may hold brackets.
    console.print(Text(f"database {report['database']}\ncache    {report['cache']}"), soft_wrap=True)
    table = Table("", "subject", "finding", box=SIMPLE_HEAD)
    for finding in findings:
        table.add_row(Text(finding.level, _STYLE[finding.level]), finding.subject, Text(finding.text))
    console.print(table)
