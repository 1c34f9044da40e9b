"""Loads the databases that old releases of google-adk have made (see `make_dumps.py`)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pymysql
from sqlalchemy.engine import make_url

from tests import servers

DUMPS = Path(__file__).with_name("dumps")
V0 = ("1.0.0", "1.10.0", "1.21.0")
V1 = ("1.22.0", "2.4.0")
ZONE = "America/New_York"


class Loaded(NamedTuple):
    """A database as the release left it.

    Attributes:
        url: For SQLAlchemy, with an asynchronous driver.
        said: The sessions as the release itself read them back.
    """

    url: str
    said: list[dict[str, Any]]


@contextlib.contextmanager
def load(release: str, kind: str, directory: Path) -> Iterator[Loaded]:
    """Loads one dump into a database of its own and drops that afterwards."""
    text = (DUMPS / f"{release}-{kind}.sql").read_text()
    mark = "-- said: "
    said = [json.loads(line.removeprefix(mark)) for line in text.splitlines() if line.startswith(mark)]
    with empty(kind, directory) as url:
        run(url, text)
        yield Loaded(url, said)


@contextlib.contextmanager
def empty(kind: str, directory: Path, name: str = "old.db") -> Iterator[str]:
    """Makes an empty database and drops it afterwards."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{directory / name}"
    else:
        make = servers.postgresql_database if kind == "postgresql" else servers.mariadb_database
        with make() as url:
            yield url


def run(url: str, script: str) -> None:
    """Runs statements, each ending at the end of a line, on any of the three databases."""
    place = make_url(url)
    lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    if place.get_backend_name() == "sqlite":
        with contextlib.closing(sqlite3.connect(str(place.database))) as connection:
            connection.executescript(lines)
    elif place.get_backend_name() == "postgresql":
        plain = place.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(lines.encode())
    else:
        settings = {"host": place.host, "port": place.port or 3306, "user": place.username or "root"}
        with contextlib.closing(
            pymysql.connect(
                **settings, password=place.password or "", database=place.database, autocommit=True
            )
        ) as connection:
            cursor = connection.cursor()
            # Tables come in the order of their names.
            cursor.execute("SET foreign_key_checks = 0")
            for statement in lines.split(";\n"):
                if statement.strip():
                    cursor.execute(statement)
