"""Makes the databases in `tests/adk/dumps` with real old releases of google-adk.

Each release gets a virtual environment, holds the conversations of `old_release.py` in an empty
database of each kind, prints what it reads back, and leaves a text dump:

    python tests/adk/make_dumps.py --environments DIR [RELEASE ...]

PostgreSQL and MariaDB are those that the tests use; their client programs `pg_dump` and
`mariadb-dump` are needed. A dump begins with its release and command, then with a comment line
`-- said: {...}` for each session that the old release printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import servers

HERE = Path(__file__).parent
RELEASES = ("1.0.0", "1.10.0", "1.21.0", "1.22.0", "2.4.0")
# These use synchronous drivers.
SYNCHRONOUS = {"1.0.0", "1.10.0"}
DRIVERS = ("sqlalchemy", "greenlet", "psycopg2-binary", "pymysql", "asyncpg", "asyncmy", "aiosqlite")
# Not UTC, with summer time: those releases wrote some columns in local time.
ZONE = "America/New_York"


def environment(directory: Path, release: str) -> Path:
    """Returns the interpreter of an environment that holds the release, made if it is not there."""
    python = directory / release / "bin" / "python"
    if not python.exists():
        venv.create(directory / release, with_pip=True)
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            f"google-adk=={release}",
            "deprecated",
            *DRIVERS,
        ]
        subprocess.run(command, check=True)
    return python


def hold(python: Path, url: str) -> str:
    """Lets the release write its conversations; returns what it printed."""
    done = subprocess.run(
        [python, "-W", "ignore", HERE / "old_release.py", url],
        env={**os.environ, "TZ": ZONE},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


def on_sqlite(python: Path, synchronous: bool) -> tuple[str, str, str]:
    """Returns the command, what was printed, and the dump."""
    path = HERE / "dumps" / "making.db"
    path.unlink(missing_ok=True)
    try:
        said = hold(python, f"sqlite{'' if synchronous else '+aiosqlite'}:///{path}")
        connection = sqlite3.connect(path)
        dump = "\n".join(connection.iterdump())
        connection.close()
    finally:
        path.unlink(missing_ok=True)
    return "sqlite3.Connection.iterdump()", said, dump


def on_postgresql(python: Path, synchronous: bool) -> tuple[str, str, str]:
    """Returns the command, what was printed, and the dump."""
    with servers.postgresql_database("psycopg2" if synchronous else "asyncpg") as url:
        said = hold(python, url)
        command = ["pg_dump", "--inserts", "--no-owner", "--no-privileges", "--no-comments"]
        dump = _run([*command, "postgresql" + url[url.index("://") :]])
    # Commands of psql and settings that another server version may not know.
    lines = [
        line for line in dump.splitlines() if line and not line.startswith(("--", "\\", "SET ", "SELECT "))
    ]
    return " ".join(command), said, "\n".join(lines)


def on_mariadb(python: Path, synchronous: bool) -> tuple[str, str, str]:
    """Returns the command, what was printed, and the dump."""
    with servers.mariadb_database("pymysql" if synchronous else "asyncmy") as url:
        said = hold(python, url)
        parts = urlsplit(url)
        command = ["mariadb-dump", "--compact", "--skip-extended-insert", "--hex-blob", "--order-by-primary"]
        place = [f"--host={parts.hostname}", f"--port={parts.port or 3306}", f"--user={parts.username}"]
        if parts.password:
            place.append(f"--password={parts.password}")
        dump = _run([*command, *place, parts.path[1:]])
    lines = [line for line in dump.splitlines() if line and not line.startswith("/*")]
    return " ".join(command), said, "\n".join(lines)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


KINDS: dict[str, Callable[[Path, bool], tuple[str, str, str]]] = {
    "sqlite": on_sqlite,
    "postgresql": on_postgresql,
    "mariadb": on_mariadb,
}


def main() -> None:
    """Makes the dumps of the releases named, or of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--environments", type=Path, required=True, help="where the virtual environments are made"
    )
    parser.add_argument("releases", nargs="*", default=RELEASES)
    options = parser.parse_args()
    (HERE / "dumps").mkdir(exist_ok=True)
    for release in options.releases:
        python = environment(options.environments, release)
        for kind, make in KINDS.items():
            command, said, dump = make(python, release in SYNCHRONOUS)
            head = [
                f"-- google-adk {release}, Python {platform.python_version()}, TZ={ZONE}",
                f"-- python tests/adk/make_dumps.py {release}: old_release.py, then {command}",
                *(f"-- said: {line}" for line in said.splitlines()),
            ]
            path = HERE / "dumps" / f"{release}-{kind}.sql"
            path.write_text("\n".join([*head, dump.strip(), ""]))
            print(path.name, len(path.read_text()))


if __name__ == "__main__":
    main()
