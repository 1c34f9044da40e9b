"""The tables: ADK's V1 layout, with nullable columns of ours that stock ADK never looks at.

NULL in an added column means that another program wrote the row. Nothing here has a server
default, for a default would make foreign rows look like ours.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    case,
    type_coerce,
)
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

SCHEMA_VERSION_KEY = "schema_version"
SCHEMA_VERSION = "1"
NAMESPACE_KEY = "tiered_sessions_namespace"
ID_LENGTH = 128
INVOCATION_ID_LENGTH = 256

_MYSQL = ("mysql", "mariadb")


class Identifier(String):
    """An id, compared byte by byte in tables that we make."""


@compiles(Identifier, "mysql", "mariadb")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _mysql_identifier(type_: Identifier, compiler: Any, **_: Any) -> str:
    return f"VARCHAR({type_.length}) CHARACTER SET utf8mb4 COLLATE {_mysql_collation(compiler.dialect)}"


@compiles(Identifier, "mssql")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _mssql_identifier(type_: Identifier, compiler: Any, **_: Any) -> str:
    return f"VARCHAR({type_.length}) COLLATE Latin1_General_100_BIN2_UTF8"


def _mysql_collation(dialect: Dialect) -> str:
    # utf8mb4_bin ignores trailing spaces when it compares; ids "a" and "a " would be one.
    if dialect.name == "mariadb" or getattr(dialect, "is_mariadb", False):
        return "utf8mb4_nopad_bin"
    if (dialect.server_version_info or ()) >= (8, 0, 17):
        return "utf8mb4_0900_bin"
    return "utf8mb4_bin"


class JsonText(TypeDecorator[str]):
    """A JSON document, bound and returned as its text on every database.

    No driver decodes or encodes it: a driver's JSON codec would turn integers beyond 64 bits
    into floats.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB())
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"))
        if dialect.name == "mssql":
            return dialect.type_descriptor(mssql.NVARCHAR(None))
        return dialect.type_descriptor(Text())

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        return _TextToJson(type_coerce(bindvalue, Text))

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return _JsonToText(column)


class _TextToJson(FunctionElement[Any]):
    type = Text()
    inherit_cache = True


class _JsonToText(FunctionElement[Any]):
    type = Text()
    inherit_cache = True


@compiles(_TextToJson)  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
@compiles(_JsonToText)  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _as_it_is(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return ", ".join(compiler.process(clause, **kw) for clause in element.clauses)


@compiles(_TextToJson, "postgresql")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _text_to_jsonb(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_as_it_is(element, compiler, **kw)} AS JSONB)"


@compiles(_JsonToText, "postgresql")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _jsonb_to_text(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_as_it_is(element, compiler, **kw)} AS TEXT)"


def _timestamp() -> TypeEngine[Any]:
    return (
        DateTime()
        .with_variant(mysql.DATETIME(fsp=6), *_MYSQL)
        .with_variant(mssql.DATETIME2(6), "mssql")  # type: ignore[no-untyped-call,unused-ignore]
        .with_variant(oracle.TIMESTAMP(), "oracle")
    )


def _id(name: str, *, key: bool = True) -> Column[str]:
    return Column(name, Identifier(ID_LENGTH), primary_key=key, nullable=False)


def _tag() -> tuple[Column[int], ...]:
    return tuple(Column(name, BigInteger, nullable=True) for name in ("incarnation", "revision", "nonce"))


metadata = MetaData()

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in _MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

adk_internal_metadata = Table(
    "adk_internal_metadata",
    metadata,
    Column("key", Identifier(ID_LENGTH), primary_key=True),
    Column("value", String(256), nullable=False),
    **_OPTIONS,
)

sessions = Table(
    "sessions",
    metadata,
    _id("app_name"),
    _id("user_id"),
    _id("id"),
    Column("state", JsonText, nullable=False),
    Column("create_time", _timestamp(), nullable=False),
    Column("update_time", _timestamp(), nullable=False),
    *_tag(),
    Column("expires_at", _timestamp(), nullable=True),
    Column("sliding_ttl", BigInteger, nullable=True),
    **_OPTIONS,
)

events = Table(
    "events",
    metadata,
    _id("id"),
    _id("app_name"),
    _id("user_id"),
    _id("session_id"),
    Column("invocation_id", Identifier(INVOCATION_ID_LENGTH), nullable=False),
    Column("timestamp", _timestamp(), nullable=False),
    Column("event_data", JsonText, nullable=True),
    Column("seq", BigInteger, nullable=True),
    ForeignKeyConstraint(
        ["app_name", "user_id", "session_id"],
        ["sessions.app_name", "sessions.user_id", "sessions.id"],
        ondelete="CASCADE",
    ),
    **_OPTIONS,
)

app_states = Table(
    "app_states",
    metadata,
    _id("app_name"),
    Column("state", JsonText, nullable=False),
    Column("update_time", _timestamp(), nullable=False),
    *_tag(),
    **_OPTIONS,
)

user_states = Table(
    "user_states",
    metadata,
    _id("app_name"),
    _id("user_id"),
    Column("state", JsonText, nullable=False),
    Column("update_time", _timestamp(), nullable=False),
    *_tag(),
    **_OPTIONS,
)

cache_outbox = Table(
    "cache_outbox",
    metadata,
    Column("kind", String(16), primary_key=True),
    _id("app_name"),
    _id("user_id"),
    _id("session_id"),
    *_tag(),
    Column("update_time", BigInteger, nullable=True),
    Column("stamp", BigInteger, nullable=False),
    **_OPTIONS,
)

schema_version = Table(
    "tiered_sessions_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    **_OPTIONS,
)

events_by_time = Index(
    "idx_events_app_user_session_ts_id",
    events.c.app_name,
    events.c.user_id,
    events.c.session_id,
    events.c.timestamp.desc(),
    events.c.id.desc(),
)

# For the sweep. Partial where that exists, so that sessions which never expire are not in it.
_expires = sessions.c.expires_at.is_not(None)
sessions_by_expiry = Index(
    "idx_sessions_expires_at",
    sessions.c.expires_at,
    postgresql_where=_expires,
    sqlite_where=_expires,
    mssql_where=_expires,
)

_SEQ_INDEX = "uq_events_app_user_session_seq"
_session_of_event = (events.c.app_name, events.c.user_id, events.c.session_id)


def _not_oracle(
    ddl: Any, target: Any, bind: Any, tables: Any = None, state: Any = None, *, dialect: Dialect, **_: Any
) -> bool:
    return dialect.name != "oracle"


# A unique index must let through any number of foreign rows, whose seq is NULL. SQL Server and
# Oracle count NULL as a value there: the one needs a filter, the other expressions that are NULL
# as a whole.
events_by_seq = Index(
    _SEQ_INDEX, *_session_of_event, events.c.seq, unique=True, mssql_where=events.c.seq.is_not(None)
).ddl_if(callable_=_not_oracle)

events_by_seq_oracle = Index(
    _SEQ_INDEX,
    *(case((events.c.seq.is_not(None), column)) for column in _session_of_event),
    events.c.seq,
    unique=True,
).ddl_if(dialect="oracle")
