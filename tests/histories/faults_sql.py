"""Faults of the database: slow, cut, locked, at odds with itself, gone, and back with less than it had."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.histories.faults_common import (
    COMMIT,
    DURING,
    UNTIL_APPLIED,
    Injection,
    all_met,
    dialect,
    forget,
    holding,
    require,
    until,
)
from tiered_sessions.cli.cache import opened_store

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

DELAY = 0.03
TIES = 30
SEQUENCE = "CREATE SEQUENCE fault_refused CACHE 1"
SERVERS = ("postgresql", "mysql")


class SqlFault(Injection):
    """A fault of a database server, of which callers may hear."""

    store_fails = True
    databases = SERVERS
    hides_cache = False


@contextlib.asynccontextmanager
async def transaction(fleet: Fleet, *statements: str) -> AsyncIterator[AsyncConnection]:
    """Another program's transaction on the fleet's database; rolled back with the block."""
    engine = create_async_engine(fleet.database_url, poolclass=NullPool, isolation_level="READ COMMITTED")
    try:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
            yield connection
            await connection.rollback()
    finally:
        await engine.dispose()


async def waiting(fleet: Fleet) -> int:
    """Returns how many connections of the fleet's database wait for a lock."""
    rows = await fleet.sql(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        if dialect(fleet) == "postgresql"
        else "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
        "ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE() AND t.trx_state = 'LOCK WAIT'"
    )
    return int(rows[0][0])


async def end_connections(fleet: Fleet) -> int:
    """Ends all connections to the fleet's database but ours; returns how many."""
    if dialect(fleet) == "postgresql":
        return len(
            await fleet.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    open_ones = await fleet.sql(
        "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    )
    for (number,) in open_ones:
        # It may have gone by itself.
        with contextlib.suppress(OperationalError):
            await fleet.sql(f"KILL {int(number)}")
    return len(open_ones)


class Slow(SqlFault):
    """Each piece takes longer, either way."""

    name = "sql slow"
    store_fails = False

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for relay in fleet.sql_relays:
            relay.request_delay = relay.reply_delay = DELAY
        try:
            await all_met(fleet.sql_relays, "delayed")
            yield
        finally:
            for relay in fleet.sql_relays:
                relay.request_delay = relay.reply_delay = 0.0


class Stalled(SqlFault):
    """Commits arrive at the database only when their masks have expired (R7)."""

    name = "sql stalled beyond a mask's life"
    staleness = UNTIL_APPLIED
    config: dict[str, Any] = {  # noqa: RUF012 - part of the protocol of faults
        "lock_timeout": 0.1,
        "statement_timeout": 0.3,
        "mask_age": 0.2,
        "mask_life": 1.0,
    }

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for relay in fleet.sql_relays:
            relay.hold_requests(COMMIT[dialect(fleet)])
        try:
            await asyncio.gather(*map(holding, fleet.sql_relays))
            end = time.monotonic() + self.config["mask_life"] + 0.2
            while time.monotonic() < end:
                await fleet.progress(1, any_outcome=True)
            require(all(relay.held for relay in fleet.sql_relays), "commits are on their way for that long")
        finally:
            for relay in fleet.sql_relays:
                relay.heal()
        yield


class Terminated(SqlFault):
    """The server ends all connections of the fleet."""

    name = "sql connections terminated"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        require(await end_connections(fleet), "there were connections to end")
        yield


class AcknowledgementLost(SqlFault):
    """An append is committed, and its connection breaks before anybody hears of it."""

    name = "sql acknowledgement of a commit lost"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for relay in fleet.sql_relays:
            relay.hold_replies(COMMIT[dialect(fleet)])
            try:
                await holding(relay)
            finally:
                forget(relay)
        yield


class RowsLocked(SqlFault):
    """Another program holds the rows of all sessions for a while."""

    name = "sql rows locked by another program"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        async with transaction(fleet, "SELECT id FROM sessions FOR UPDATE"):
            await until(fleet, lambda: waiting(fleet), "somebody waits for a lock", any_outcome=True)
            yield


class Deadlock(SqlFault):
    """Another program locks rows in the other order, so that the database has to break the tie.

    It takes the app's row, lets appends queue for their sessions behind a third one, then wants the
    sessions itself: an append that got its session and wants the app closes the circle and is the victim.
    """

    name = "sql deadlocks"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        postgresql = dialect(fleet) == "postgresql"
        if postgresql:
            # Whoever looks finds itself guilty: the servers' connections look, ours does not.
            (name,) = (await fleet.sql("SELECT current_database()"))[0]
            await fleet.sql(f"ALTER DATABASE {name} SET deadlock_timeout = '100ms'")
            await end_connections(fleet)
            setting = "SET deadlock_timeout = '30s'"
        else:
            await fleet.sql("CREATE TABLE IF NOT EXISTS fault_weight (n INT) ENGINE=InnoDB")
            # The victim is whoever has changed less.
            rows = ", ".join(f"({n})" for n in range(500))
            setting = f"INSERT INTO fault_weight VALUES {rows}"
        before = await self._broken(fleet)
        try:
            for _ in range(TIES):
                await self._tie(fleet, setting)
                if await self._broken(fleet) > before:
                    break
            else:
                require(False, "the database broke a tie")
        finally:
            if postgresql:
                await fleet.sql(f"ALTER DATABASE {name} RESET deadlock_timeout")
        yield

    async def _tie(self, fleet: Fleet, setting: str) -> None:
        async with transaction(fleet, setting, "SELECT state FROM app_states FOR UPDATE") as first:
            async with transaction(fleet, "SELECT id FROM sessions FOR UPDATE"):
                await until(
                    fleet, lambda: waiting(fleet), "an append waits for its session", any_outcome=True
                )
            with contextlib.suppress(DBAPIError):  # the tie may be broken the other way
                await first.exec_driver_sql("SELECT id FROM sessions FOR UPDATE")
        await fleet.progress(1, any_outcome=True)

    async def _broken(self, fleet: Fleet) -> int:
        if dialect(fleet) == "postgresql":
            rows = await fleet.sql(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
            return int(rows[0][0])
        return int((await fleet.sql("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'"))[0][1])


class Serialization(SqlFault):
    """The database refuses some writes as it does those that it cannot serialize."""

    name = "sql serialization failures"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        postgresql = dialect(fleet) == "postgresql"
        await fleet.sql(SEQUENCE, *(_REFUSE_POSTGRESQL if postgresql else _REFUSE_MYSQL))
        try:
            # A sequence counts what is rolled back, too.
            await until(fleet, lambda: self._counted(fleet), "writes were refused", any_outcome=True)
            yield
        finally:
            await fleet.sql(
                f"DROP TRIGGER IF EXISTS fault_refuse{' ON sessions' if postgresql else ''}",
                "DROP SEQUENCE fault_refused",
            )

    async def _counted(self, fleet: Fleet) -> bool:
        column = "last_value" if dialect(fleet) == "postgresql" else "next_not_cached_value"
        return int((await fleet.sql(f"SELECT {column} FROM fault_refused"))[0][0]) > 5


_REFUSE_POSTGRESQL = (
    "CREATE OR REPLACE FUNCTION fault_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF random() < 0.3 THEN PERFORM nextval('fault_refused'); "
    "RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'could not serialize access'; END IF; "
    "RETURN NEW; END $$",
    "CREATE TRIGGER fault_refuse BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION fault_refuse()",
)
_REFUSE_MYSQL = (
    "CREATE TRIGGER fault_refuse BEFORE UPDATE ON sessions FOR EACH ROW BEGIN "
    "DECLARE refused BIGINT; IF RAND() < 0.3 THEN SET refused = NEXTVAL(fault_refused); "
    "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'; END IF; END",
)


# --- a server of the fleet's own -----------------------------------------------------------------


class OwnDatabaseFault(SqlFault):
    """A fault of a PostgreSQL server that nobody else uses."""

    databases = ("postgresql",)
    own_database = True


class Restarted(OwnDatabaseFault):
    """The server crashes and comes back with all it acknowledged."""

    name = "sql server crashed and restarted"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        assert fleet.database is not None
        started = await fleet.sql("SELECT pg_postmaster_start_time()")
        await asyncio.to_thread(fleet.database.kill)
        try:
            await fleet.progress(DURING, any_outcome=True)
        finally:
            await asyncio.to_thread(fleet.database.restart)
        require(await fleet.sql("SELECT pg_postmaster_start_time()") != started, "it was restarted")
        yield


class LostCommits(OwnDatabaseFault):
    """The server is replaced by one that has not got the last commits, as a lagging replica has not.

    Args:
        reset: Whether the operator then changes the cache namespace, as documented.
    """

    loses_commits = True
    config: dict[str, Any] = {"max_staleness": 2.0}  # noqa: RUF012 - part of the protocol of faults

    def __init__(self, *, reset: bool) -> None:
        self.name = f"sql failover losing commits{', cache reset' if reset else ''}"
        self.staleness = self.config["max_staleness"]
        self._reset = reset

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        ((data,),) = await fleet.sql("SHOW data_directory")
        behind = Path(data).with_name("behind")
        await self._while_down(fleet, lambda: _copy(Path(data), behind))
        await fleet.progress(2 * DURING)
        await fleet.sql("CREATE TABLE fault_lost (n INT)")
        await self._while_down(fleet, lambda: _replace(Path(data), behind))
        require(await fleet.sql("SELECT to_regclass('fault_lost')") == [(None,)], "commits were lost")
        if self._reset:
            # What `tiered-sessions cache reset` does.
            async with opened_store(fleet.database_url) as store:
                await store.reset_namespace()
        yield

    async def _while_down(self, fleet: Fleet, work: Callable[[], None]) -> None:
        assert fleet.database is not None
        await asyncio.to_thread(fleet.database.kill)
        try:
            await asyncio.to_thread(work)
        finally:
            await asyncio.to_thread(fleet.database.restart)


def _copy(data: Path, behind: Path) -> None:
    # Not shutil: the files keep their owner.
    subprocess.run(["cp", "-a", data, behind], check=True)
    (behind / "postmaster.pid").unlink(missing_ok=True)


def _replace(data: Path, behind: Path) -> None:
    shutil.rmtree(data)
    behind.rename(data)
