"""Makes engines from URLs: drivers, pools, and what every new connection is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from ..config import TieredConfig
from ..errors import ConfigurationError, StoreUnavailableError
from ..urls import missing_driver_error, normalise_database_url, redact

_CONNECT_TIMEOUT = 10

logger = logging.getLogger("tiered_sessions")


def build_engine(url: str | URL, config: TieredConfig, **engine_options: Any) -> AsyncEngine:
    """Makes an engine of any spelling of a database URL. Connects to nothing yet.

    Args:
        url: The address; options inside it count less than `engine_options`.
        config: Time-outs that every connection is told.
        engine_options: As for SQLAlchemy's `create_async_engine`.

    Raises:
        ConfigurationError: The URL or an option is not usable, or the driver is not installed.
    """
    text = url.render_as_string(hide_password=False) if isinstance(url, URL) else url
    address = normalise_database_url(text)
    options: dict[str, Any] = {**address.engine_options, **engine_options}
    options.pop("future", None)
    options["connect_args"] = {**address.connect_args, **engine_options.get("connect_args", {})}
    name = {"asyncpg": "timeout", "oracledb": "tcp_connect_timeout"}.get(address.driver, "connect_timeout")
    if address.driver in ("asyncpg", "psycopg", "aiomysql", "asyncmy", "oracledb"):
        options["connect_args"].setdefault(name, _CONNECT_TIMEOUT)
    if address.memory:
        # One connection: each further one would be another, empty database.
        options = {name: value for name, value in options.items() if not name.startswith(("pool_", "max_"))}
        options["poolclass"] = StaticPool
    elif address.dialect == "mysql":
        # Statements stand alone, transactions are begun by hand: one round trip each.
        options = {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True, **options}
        if not options.keys() & {"pool_size", "max_overflow", "pool", "poolclass"}:
            # As many as by default, but kept: they are threads, and those that commit at once share a flush.
            options |= {"pool_size": 12, "max_overflow": 3}
    if address.dialect == "sqlite":
        # A unit of work ends its transaction itself; a rollback on return is one more hop to the thread.
        options = {"pool_reset_on_return": None, **options}
    try:
        engine = create_async_engine(make_url(address.url), **options)
    except (ImportError, NoSuchModuleError) as error:
        raise missing_driver_error(address.driver) from error
    except (ArgumentError, InvalidRequestError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The engine for {redact(text)} cannot be made: {redact(str(error))}"
        ) from error
    _tell(engine, config)
    return engine


def transactional(engine: AsyncEngine) -> AsyncEngine:
    """Returns an engine of `build_engine` as others expect one: `begin()` begins a transaction."""
    if engine.dialect.name == "mysql":
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine


def in_memory(engine: AsyncEngine) -> bool:
    """Says whether a SQLite database is one that nobody else can open."""
    # A named or shared one ("file:...") can be opened by others of this process.
    return engine.url.database in (None, "", ":memory:")


def refuse_missing_file(engine: AsyncEngine) -> None:
    """Raises `StoreUnavailableError` for a SQLite file that is not there: SQLite would make it."""
    file = engine.url.database or ""
    named = engine.dialect.name == "sqlite" and not in_memory(engine) and not file.startswith("file:")
    if named and not Path(file).exists():
        raise StoreUnavailableError(f"{file}: no such file; a service with create_tables=True makes it")


def _tell(engine: AsyncEngine, config: TieredConfig) -> None:
    """Has every new connection told its time-outs and modes, in one round trip."""
    lock, statement = round(config.lock_timeout * 1000), round(config.statement_timeout * 1000)
    match engine.dialect.name:
        case "sqlite":
            # The change to WAL comes last: it fails while another process holds the file.
            scripts = [
                f"PRAGMA busy_timeout = {lock}; PRAGMA foreign_keys = ON; "
                "PRAGMA synchronous = NORMAL; PRAGMA journal_mode = WAL"
            ]
        case "postgresql":
            basic = ", ".join(
                f"set_config('{name}', '{value}', false)"
                for name, value in (
                    ("default_transaction_isolation", "read committed"),
                    ("lock_timeout", lock),
                    ("statement_timeout", statement),
                )
            )
            # A client that is gone must not commit later, when its lock comes free (14 and newer).
            interval = (
                "CASE WHEN current_setting('server_version_num')::int >= 140000 "
                "THEN set_config('client_connection_check_interval', '100', false) END"
            )
            scripts = [f"SELECT {basic}, {interval}", f"SELECT {basic}"]
        case "mysql" | "mariadb":
            # MySQL knows whole seconds only.
            scripts = [f"SET SESSION innodb_lock_wait_timeout = {max(1, round(config.lock_timeout))}"]
        case _:
            return

    @event.listens_for(engine.sync_engine, "connect")
    def tell(connection: Any, _record: Any) -> None:
        for script in scripts:
            try:
                connection.run_async(lambda driver, script=script: _run(driver, script))
            except Exception as error:
                # A pooler may refuse; the append statement carries its own lock time-out.
                logger.debug("connection settings refused: %s", type(error).__name__)
            else:
                return


async def _run(driver: Any, script: str) -> None:
    """Executes a script on a raw connection of any of the asynchronous drivers."""
    if hasattr(driver, "executescript"):  # aiosqlite
        await (await driver.executescript(script)).close()
    elif hasattr(driver, "fetchrow"):  # asyncpg
        await driver.execute(script)
    elif hasattr(driver, "set_autocommit"):  # psycopg; a rollback would undo the settings
        await driver.set_autocommit(True)
        await driver.execute(script)
        await driver.set_autocommit(False)
    else:  # aiomysql, asyncmy
        async with driver.cursor() as cursor:
            await cursor.execute(script)
