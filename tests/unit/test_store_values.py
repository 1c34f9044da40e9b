"""Checks and conversions of values, the mapping of errors, and statements of absent databases."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql, sqlite
from sqlalchemy.exc import TimeoutError as CheckoutTimeoutError
from sqlalchemy.sql.base import Executable

from tiered_sessions.codec import loads
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import (
    ConfigurationError,
    InvalidValueError,
    PoolTimeoutError,
    StoreUnavailableError,
)
from tiered_sessions.records import NewEvent, Tag
from tiered_sessions.store import statements
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.failures import is_duplicate, mapped
from tiered_sessions.store.values import (
    ascii_json,
    check_jsonb,
    distinct,
    fresh,
    merged,
    to_micros,
    to_tag,
    to_time,
)


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_times_keep_every_microsecond(micros: int) -> None:
    assert to_micros(to_time(micros)) == micros
    assert to_micros(to_time(micros).isoformat(" ", "microseconds")) == micros
    assert to_micros(to_time(micros).replace(tzinfo=UTC)) == micros


def test_a_time_no_column_holds() -> None:
    with pytest.raises(InvalidValueError):
        to_time(10**18)


def test_a_tag_without_our_columns_is_not_adopted() -> None:
    time = datetime(1970, 1, 1, 0, 0, 1)
    assert to_tag(None, None, None, time) == Tag(0, 0, 0, 1_000_000)
    assert to_tag(3, 0, 5, time) == Tag(3, 0, 5, 1_000_000)


def test_random_numbers_fit_their_column_and_are_never_0() -> None:
    assert all(0 < fresh() < 2**63 for _ in range(100))


@pytest.mark.parametrize(
    "document",
    [
        rb'{"a":"\u0000"}',
        rb'{"\u0000":1}',
        rb'["\\\u0000"]',
        rb'["\ud800"]',
        rb'["\uDC00\uD800"]',
        b"[NaN]",
        b"[-Infinity]",
    ],
)
def test_jsonb_refuses(document: bytes) -> None:
    with pytest.raises(InvalidValueError, match="thing"):
        check_jsonb("the thing", document)


@pytest.mark.parametrize(
    "document", [rb'["\\u0000"]', rb'["\ud83d\ude00"]', b'["NaN","Infinity"]', '["é"]'.encode(), b"{}"]
)
def test_jsonb_takes(document: bytes) -> None:
    check_jsonb("thing", document)


@given(st.text())
def test_ascii_json_is_the_same_value(text: str) -> None:
    import json

    document = json.dumps({text.replace("\ud800", ""): text}, ensure_ascii=False).encode("utf-8", "replace")
    escaped = ascii_json(document)
    assert escaped.isascii()
    assert loads(escaped) == loads(document)


def test_merging_is_shallow_and_keeps_none_and_big_numbers() -> None:
    assert merged(b'{"a":{"x":1},"b":1e400}', b'{"a":{"y":2},"c":null}').startswith(b'{"a":{"y":2}')
    assert merged("[1]", b'{"a":1}') == b'{"a":1}'
    assert merged(b"{}", b'{"n":1180591620717411303424}') == b'{"n":1180591620717411303424}'
    with pytest.raises(InvalidValueError):
        merged(b"not json", b"{}")


def test_repeated_events() -> None:
    one, same, other = (
        NewEvent("e", "i", 0, b'{"a":1,"b":2}'),
        NewEvent("e", "i", 0, b'{"b": 2, "a": 1}'),
        NewEvent("e", "i", 0, b'{"a":2}'),
    )
    assert distinct((one, same)) == (one,)
    assert distinct((one, other)) == "e"
    assert distinct((one, other._replace(id="f"))) == (one, other._replace(id="f"))


def test_errors_of_drivers() -> None:
    assert isinstance(mapped(CheckoutTimeoutError("QueuePool limit")), PoolTimeoutError)
    assert isinstance(mapped(ConnectionRefusedError(111, "refused")), StoreUnavailableError)
    error = mapped(OSError("cannot reach postgresql://user:s3cret@host/db"))
    assert isinstance(error, StoreUnavailableError)
    assert "s3cret" not in str(error)
    kept = InvalidValueError("as it was")
    assert mapped(kept) is kept


def test_only_unique_indexes_make_duplicates() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a PRIMARY KEY, b NOT NULL)")
    connection.execute("INSERT INTO t VALUES (1, 1)")
    for values, duplicate in (("(1, 1)", True), ("(2, NULL)", False)):
        with pytest.raises(sqlite3.IntegrityError) as raised:
            connection.execute(f"INSERT INTO t VALUES {values}")
        assert is_duplicate(raised.value) is duplicate
    connection.close()


@pytest.mark.parametrize(
    "dialect", [postgresql, mysql, sqlite, mssql, oracle], ids=lambda module: module.__name__
)
def test_every_portable_statement_compiles(dialect: object) -> None:
    every = [
        value for name, value in vars(statements).items() if name.isupper() and isinstance(value, Executable)
    ]
    assert len(every) > 20
    flags = (False, True)
    every += [
        statements.update_session(adopted=a, state=s, sliding=t) for a, s, t in product(flags, repeat=3)
    ]
    every += [
        statements.newest_events(limited=n, after=a, before_seq=b, foreign=f)
        for n in flags
        for a in flags
        for b in flags
        for f in flags
    ]
    for statement in every:
        assert str(statement.compile(dialect=dialect.dialect()))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "option", [{"pool_size": "many"}, {"no_such_option": 1}, {"isolation_level": "NONSENSE", "bogus": 2}]
)
def test_an_unusable_engine_option_is_a_configuration_error(option: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        build_engine("postgresql://user:s3cret@host/db", TieredConfig(), **option)


def test_pool_options_are_taken_from_the_url_and_overridden_by_arguments() -> None:
    url = "postgresql://host/db?pool_size=3&max_overflow=4"
    engine = build_engine(url, TieredConfig(), pool_size=7)
    assert engine.pool.size() == 7  # type: ignore[attr-defined]
    assert engine.pool._max_overflow == 4  # type: ignore[attr-defined]


def test_mariadb_keeps_more_connections_unless_told_otherwise() -> None:
    url = "mysql+aiomysql://host/db"
    pools = [build_engine(url, TieredConfig(), **given).pool for given in ({}, {"pool_size": 3})]
    assert [pool.size() for pool in pools] == [12, 3]  # type: ignore[attr-defined]
    assert [pool._max_overflow for pool in pools] == [3, 10]  # type: ignore[attr-defined]
