"""URLs: every spelling of docs/urls.md is read, refused with the right one, and never shown whole."""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from tiered_sessions.errors import ConfigurationError
from tiered_sessions.urls import missing_driver_error, normalise_cache_url, normalise_database_url, redact

SPELLINGS = [
    ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
    ("postgresql://u:p@h:5432/d", "postgresql+asyncpg://u:p@h:5432/d"),
    ("  POSTGRESQL://h/d\n", "postgresql+asyncpg://h/d"),
    ("postgresql+asyncpg://h/d", "postgresql+asyncpg://h/d"),
    ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
    ("postgresql+psycopg_async://h/d", "postgresql+psycopg://h/d"),
    ("postgresql+psycopg2://h/d", "postgresql+asyncpg://h/d"),
    ("postgresql://u:p@[::1]:5432/d", "postgresql+asyncpg://u:p@[::1]:5432/d"),
    ("postgresql://h/d?host=h1:1&host=h2:2", "postgresql+asyncpg://h/d?host=h1%3A1&host=h2%3A2"),
    ("mysql://u:p@h/d", "mysql+aiomysql://u:p@h/d?charset=utf8mb4"),
    ("mysql+pymysql://h/d?charset=utf8mb4", "mysql+aiomysql://h/d?charset=utf8mb4"),
    ("mysql+mysqldb://h/d", "mysql+aiomysql://h/d?charset=utf8mb4"),
    ("mysql+asyncmy://h/d", "mysql+asyncmy://h/d?charset=utf8mb4"),
    ("mariadb+aiomysql://h/d", "mysql+aiomysql://h/d?charset=utf8mb4"),
    ("mysql://h/d?unix_socket=/run/m.sock", "mysql+aiomysql://h/d?unix_socket=/run/m.sock&charset=utf8mb4"),
    ("sqlite://", "sqlite+aiosqlite:///:memory:"),
    ("sqlite:///", "sqlite+aiosqlite:///:memory:"),
    ("sqlite:///:memory:", "sqlite+aiosqlite:///:memory:"),
    ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ("sqlite:////tmp/a@b.db?timeout=3", "sqlite+aiosqlite:////tmp/a@b.db?timeout=3"),
    ("sqlite+aiosqlite:///./a.db", "sqlite+aiosqlite:///./a.db"),
    (
        "spanner+spanner://projects/p/instances/i/databases/d",
        "spanner+spanner:///projects/p/instances/i/databases/d",
    ),
    (
        "spanner:///projects/p/instances/i/databases/d",
        "spanner+spanner:///projects/p/instances/i/databases/d",
    ),
    ("oracle://u:p@h:1521/?service_name=s", "oracle+oracledb://u:p@h:1521/?service_name=s"),
    ("mssql+pyodbc://h/d?driver=ODBC+Driver", "mssql+aioodbc://h/d?driver=ODBC+Driver"),
    ("cockroachdb+asyncpg://u@h/d?x=y", "cockroachdb+asyncpg://u@h/d?x=y"),
]


@pytest.mark.parametrize(("given_", "wanted"), SPELLINGS)
def test_spelling_is_read(given_: str, wanted: str) -> None:
    url = normalise_database_url(given_)
    assert url.url == wanted
    assert make_url(url.url).drivername == f"{url.dialect}+{url.driver}"
    assert url.memory == wanted.endswith(":memory:")


def test_shared_memory_file_is_memory() -> None:
    assert normalise_database_url("sqlite:///file:x?mode=memory&cache=shared&uri=true").memory


PASSWORDS = ["p@ss", "a/b", "a:b", "100%", "%41", "p@s/s:w?x%20y", "#&=+", "5/w", "ü"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_encoded_password_is_read(password: str) -> None:
    url = normalise_database_url(f"postgresql://u:{quote(password, safe='')}@h:1/d")
    assert make_url(url.url).password == password
    assert make_url(url.url).host == "h"


@pytest.mark.parametrize("password", ["p@ss", "a/b", "a:b", "100%", "5/w", "p@ss/w", "x?y", "p@x?y", "ü"])
def test_raw_password_is_read_where_that_is_possible(password: str) -> None:
    for text in (f"postgresql://u:{password}@h:1/d", f"postgresql://u:{password}@h/d?pool_size=3"):
        parsed = make_url(normalise_database_url(text).url)
        assert (parsed.password, parsed.host, parsed.database) == (password, "h", "d")
        assert password not in redact(text)
    assert make_url(normalise_cache_url(f"redis://:{password}@h:1/0")).password == password


def test_at_sign_in_the_query_belongs_to_the_query() -> None:
    url = normalise_database_url("postgresql://u:p@h/d?application_name=a@b")
    assert make_url(url.url).host == "h"
    assert url.connect_args == {"server_settings": {"application_name": "a@b"}}


ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("postgresql://h/d?sslmode=require", {"ssl": "require"}),
    ("postgresql://h/d?ssl=require", {"ssl": "require"}),
    ("postgresql://h/d?ssl=true", {"ssl": "require"}),
    ("postgresql://h/d?ssl=false", {"ssl": "disable"}),
    ("postgresql+psycopg://h/d?sslmode=verify-full", {"sslmode": "verify-full"}),
    ("postgresql+psycopg://h/d?ssl=true", {"sslmode": "require"}),
    ("postgresql://u:p@/d?host=/cloudsql/a:b:c", {"host": "/cloudsql/a:b:c"}),
    ("postgresql+psycopg://u:p@/d?host=/cloudsql/a:b:c", {"host": "/cloudsql/a:b:c"}),
    ("postgresql://u:p@%2Fvar%2Frun/d", {"host": "/var/run"}),
    ("postgresql://h/d?connect_timeout=5&command_timeout=2.5", {"timeout": 5.0, "command_timeout": 2.5}),
    (
        "postgresql://h/d?options=-csearch_path%3Dx%5C%20y%20--work-mem%3D1",
        {"server_settings": {"search_path": "x y", "work_mem": "1"}},
    ),
    ("postgresql://h/d?channel_binding=prefer", {}),
    ("postgresql+psycopg://h/d?prepared_statement_cache_size=0", {"prepare_threshold": None}),
    ("postgresql+psycopg://h/d?prepare_threshold=7", {"prepare_threshold": 7}),
    ("mysql://h/d?ssl=false", {}),
    ("mysql://h/d?ssl_mode=PREFERRED", {}),
]


@pytest.mark.parametrize(("text", "wanted"), ARGUMENTS)
def test_driver_arguments(text: str, wanted: dict[str, Any]) -> None:
    assert normalise_database_url(text).connect_args == wanted


@pytest.mark.parametrize("text", ["prepared_statement_cache_size=0", "pgbouncer=true"])
def test_pooler_safe_asyncpg(text: str) -> None:
    url = normalise_database_url(f"postgresql://h/d?{text}")
    assert url.url.endswith("?prepared_statement_cache_size=0")
    assert url.connect_args["statement_cache_size"] == 0
    name = url.connect_args["prepared_statement_name_func"]
    assert name() != name()


TLS = [
    ("mysql://h/d?ssl=true", ssl.CERT_NONE, False),
    ("mysql+asyncmy://h/d?ssl_mode=REQUIRED", ssl.CERT_NONE, False),
    ("mysql://h/d?ssl_mode=VERIFY_CA", ssl.CERT_REQUIRED, False),
    ("mysql://h/d?ssl_mode=VERIFY_IDENTITY", ssl.CERT_REQUIRED, True),
    ("mysql://h/d?ssl=true&ssl_check_hostname=true", ssl.CERT_REQUIRED, True),
    ("postgresql://h/d?sslmode=verify-full&sslrootcert=system", ssl.CERT_REQUIRED, True),
    ("postgresql://h/d?sslmode=require&sslrootcert=system", ssl.CERT_REQUIRED, False),
]


@pytest.mark.parametrize(("text", "verify", "by_name"), TLS)
def test_tls_context(text: str, verify: ssl.VerifyMode, by_name: bool) -> None:
    context = normalise_database_url(text).connect_args["ssl"]
    assert (context.verify_mode, context.check_hostname) == (verify, by_name)


def test_pool_options_are_lifted_out_of_the_url() -> None:
    url = normalise_database_url(
        "postgresql://h/d?pool_size=20&max_overflow=10&pool_timeout=1.5&pool_recycle=60&echo=true"
        "&pool_pre_ping=no&future=true&sslmode=require"
    )
    assert url.url == "postgresql+asyncpg://h/d"
    assert url.engine_options == {
        "pool_size": 20,
        "max_overflow": 10,
        "pool_timeout": 1.5,
        "pool_recycle": 60,
        "echo": True,
        "pool_pre_ping": False,
    }


REFUSED = [
    ("", "postgresql://user:password@host"),
    ("a.db", "sqlite:///relative.db"),
    ("sqlite://a.db", "sqlite:///relative.db"),
    ("postgresql:/h/d", "postgresql://user"),
    ("postgresql+foo://h/d", "postgresql+asyncpg"),
    ("postgersql://h/d", "did you mean postgresql://"),
    ("sqlserver://h/d", "mssql+aioodbc://"),
    ("mongodb://u:hidden@h", "known are postgresql"),
    ("redis://:hidden@h", "cache="),
    ("postgresql://u:hidden@h:abc/d", "numeric port"),
    ("postgresql://u:hidden@h1:1,h2:2/d", "one host"),
    ("postgresql://u:hidden@h/d?pool_size=many", "pool_size in the database URL must be an integer"),
    ("postgresql://u:hidden@h/d?echo=loud", "must be true or false"),
    ("postgresql://u:hidden@h/d?sslmode=maybe", "verify-full"),
    ("postgresql://u:hidden@h/d?nonsense=1", "postgresql+psycopg://"),
    ("postgresql://u:hidden@h/d?channel_binding=require", "postgresql+psycopg://"),
    ("postgresql://u:hidden@h/d?sslrootcert=/no/such/file", "certificate file"),
    ("spanner://hidden/x", "spanner+spanner:///projects/p"),
    ("host=h password=hidden", "sqlite:///relative.db"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refusal_has_the_right_spelling_and_no_secret(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        normalise_database_url(text)
    assert "u:hidden" not in str(caught.value)
    assert "password=hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("redis://", "redis://"),
        ("redis://:p@ss@h:6379/0", "redis://:p%40ss@h:6379/0"),
        ("rediss://u:p@h?ssl_cert_reqs=none", "rediss://u:p@h?ssl_cert_reqs=none"),
        ("valkey://h", "redis://h"),
        ("valkeys://h", "rediss://h"),
        ("unix:///tmp/x.sock?db=1", "unix:///tmp/x.sock?db=1"),
        ("redis+cluster://h:7000", "redis+cluster://h:7000"),
        ("redis+cluster://h:7000,[::1]:7001,h2:1/0", "redis+cluster://h:7000,[::1]:7001,h2:1/0"),
        ("redis+sentinel://:pw@h1:1,h2:2/name/0", "redis+sentinel://:pw@h1:1,h2:2/name/0"),
    ],
)
def test_cache_spelling_is_read(text: str, wanted: str) -> None:
    assert normalise_cache_url(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["h:6379", "redis://h:x", "redis://h/name", "unix://", "redis+sentinel://h:1", "http://u:hidden@h"],
)
def test_cache_refusal_has_the_right_spelling(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis://:password@host:6379/0") as caught:
        normalise_cache_url(text)
    assert "hidden" not in str(caught.value)


def test_database_as_cache() -> None:
    with pytest.raises(ConfigurationError, match="db_url="):
        normalise_cache_url("postgresql://u:p@h/d")


@pytest.mark.parametrize(
    ("driver", "install"),
    [
        ("psycopg", "tiered-sessions[psycopg]"),
        ("aiomysql", "tiered-sessions[mysql]"),
        ("asyncmy", "'asyncmy'"),
        ("spanner", "sqlalchemy-spanner"),
        ("oracledb", "'oracledb'"),
        ("aioodbc", "'aioodbc'"),
        ("other", "'other'"),
    ],
)
def test_missing_driver_names_the_package(driver: str, install: str) -> None:
    assert install in str(missing_driver_error(driver))


def test_message_is_redacted() -> None:
    message = "no connection to postgresql://u:hidden@h/d?x=hidden for 'redis://:hidden@h' (timeout)"
    shown = "no connection to postgresql://u:***@h/d?x=*** for 'redis://:***@h' (timeout)"
    assert redact(message) == shown


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="?&="), max_size=12),
    st.sampled_from(["postgresql", "redis", "mysql+aiomysql"]),
)
def test_no_raw_password_is_ever_shown(password: str, scheme: str) -> None:
    shown = redact(f"{scheme}://u:Q{password}Q@h/d?k=v")
    assert f"Q{password}Q" not in shown
    assert "=v" not in shown
