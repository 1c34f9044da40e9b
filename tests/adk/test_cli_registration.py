"""`tiered+...` URIs: what they mean, how ADK's command line comes to know them, and why it may not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlparse

import pytest
import yaml
from google.adk.cli.service_registry import ServiceRegistry, get_service_registry, load_services_module
from google.adk.cli.utils.service_factory import create_session_service_from_options
from typer.testing import CliRunner

from tests import servers
from tiered_sessions import ConfigurationError
from tiered_sessions.adk import TieredSessionService, create_session_service, register
from tiered_sessions.adk_registry import FACTORY, SCHEMES, split_uri
from tiered_sessions.cli.app import app

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "adk_chat"
CACHE = "redis://:p%40ss@cache:6379/0"
MODULE = "google.adk.cli.service_registry"


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that knows ADK's own services only, and no module called services."""
    monkeypatch.setattr(f"{MODULE}._service_registry_instance", None)
    monkeypatch.delitem(sys.modules, "services", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("TIERED_SESSIONS_DB_URL", "DATABASE_URL", "TIERED_SESSIONS_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


# --- what a URI means ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "db_url", "cache"),
    [
        ("tiered+postgresql://u:p@h/d", "postgresql://u:p@h/d", ...),
        ("tiered+postgresql+asyncpg://h/d?cache=memory", "postgresql+asyncpg://h/d", "memory"),
        ("Tiered+sqlite:////tmp/a.db?cache=none", "sqlite:////tmp/a.db", None),
        (f"tiered+mysql://h/d?cache={quote(CACHE, safe='')}", "mysql://h/d", CACHE),
        (f"tiered+mysql://h/d?cache={CACHE}", "mysql://h/d", CACHE),
        ("tiered+mysql://h/d?cache=redis%2Bcluster%3A%2F%2Fh%3A1", "mysql://h/d", "redis+cluster://h:1"),
        ("tiered+mysql://h/d?cache=redis+cluster://h:1", "mysql://h/d", "redis+cluster://h:1"),
        (
            "tiered+postgresql://h/d?sslmode=require&cache=memory&pool_size=3",
            "postgresql://h/d?sslmode=require&pool_size=3",
            "memory",
        ),
        ("tiered+postgresql://h/d?cache=memory&pool_size=3", "postgresql://h/d?pool_size=3", "memory"),
        ("tiered+mysql://h/d?cache=redis://h/0?protocol=3", "mysql://h/d", "redis://h/0?protocol=3"),
        (
            f"tiered+mysql://h/d?cache={quote('redis://h/0?a=1&b=2', safe='')}&charset=utf8mb4",
            "mysql://h/d?charset=utf8mb4",
            "redis://h/0?a=1&b=2",
        ),
        ("tiered+postgresql://u:p?w@h/d?cache=none", "postgresql://u:p?w@h/d", None),
        ("tiered://", None, ...),
        ("tiered:///?cache=redis://h", None, "redis://h"),
    ],
)
def test_a_uri_names_both_tiers(uri: str, db_url: str | None, cache: object) -> None:
    assert split_uri(uri) == (db_url, cache)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://u:secret@h/d", "not a URI of this package"),
        ("tiered:postgresql", "not a URI of this package"),
        ("tieredpostgresql://u:secret@h/d", "not a URI of this package"),
        ("tiered://u:secret@h/d", "does not say which database"),
        ("tiered+mysql://h/d?cache=redis://:secret@h/0?a=1&b=secret", "percent-encode"),
        ("tiered+mysql://h/d?cache=redis://:secret@h&cache=memory", "twice"),
    ],
)
def test_a_uri_that_cannot_be_read_is_refused_without_its_secret(uri: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        split_uri(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "tiered+postgresql+nonsense://u:secret@h/d?cache=redis://:secret@h/0",
        "tiered+sqlite://?cache=nonsense://:secret@h/0",
        "tiered+mysql://u:secret@h:port/d?cache=none",
        "tiered+postgresql://u:secret@h/d?sslmode=secret&cache=redis%3A%2F%2F%3Asecret%40h",
    ],
)
def test_what_the_constructor_refuses_names_no_secret(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"URL|://") as caught:
        create_session_service(uri)
    assert "secret" not in str(caught.value)


def test_the_environment_names_what_the_uri_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="TIERED_SESSIONS_DB_URL"):
        create_session_service("tiered://")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///from_environment.db")
    monkeypatch.setenv("REDIS_URL", "redis://from-environment:1/0")
    service = create_session_service("tiered://")
    assert service.db_engine.url.database == "from_environment.db"
    assert service._wiring._cache == "redis://from-environment:1/0"
    assert create_session_service("tiered://?cache=none")._wiring._cache is None


def test_arguments_go_where_stocks_go() -> None:
    """`agents_dir` nowhere, the rest to the service and its engine."""
    service = create_session_service(
        uri="tiered+sqlite:///a.db", agents_dir="x", cache=None, pool_size=4, on_conflict="rebase"
    )
    assert service.db_engine.pool.size() == 4  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="both"):
        create_session_service("tiered+sqlite:///a.db?cache=memory", cache=None)


# --- schemes -------------------------------------------------------------------------------------


def test_every_scheme_is_one_that_the_standard_library_sees_whole() -> None:
    assert len(set(SCHEMES)) == len(SCHEMES)
    for scheme in SCHEMES:
        assert urlparse(f"{scheme}://h/d").scheme == scheme
    usual = "postgresql postgresql+asyncpg postgresql+psycopg mysql+aiomysql mariadb+asyncmy sqlite+aiosqlite"
    assert {"tiered", *(f"tiered+{scheme}" for scheme in usual.split())} <= {*SCHEMES}


@pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES if re.match(r"tiered\+(postgres|mysql|mariadb|sqlite)", s)]
)
def test_every_spelling_makes_a_service_through_adks_factory(scheme: str, tmp_path: Path) -> None:
    register()
    uri = f"{scheme}:///a.db?cache=none" if "sqlite" in scheme else f"{scheme}://u:p@h/d?cache=none"
    made = create_session_service_from_options(base_dir=tmp_path, session_service_uri=uri)
    assert isinstance(made, TieredSessionService)


def test_without_registration_adk_never_says_so(tmp_path: Path) -> None:
    """What `adk check` is for: stock's own error does not mention the scheme."""
    with pytest.raises(ValueError, match=r"[Dd]atabase") as caught:
        create_session_service_from_options(
            base_dir=tmp_path, session_service_uri="tiered+postgresql+asyncpg://h/d"
        )
    assert "regist" not in str(caught.value)


# --- adk init ------------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["adk", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit | ConfigurationError), result
    if isinstance(result.exception, ConfigurationError):
        return 2, "", str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def registered(folder: Path) -> ServiceRegistry:
    load_services_module(str(folder))
    return get_service_registry()


def test_init_writes_a_file_that_adk_reads(tmp_path: Path) -> None:
    assert invoke("init", tmp_path)[0] == 0
    made = registered(tmp_path).create_session_service("tiered+sqlite:///a.db", agents_dir=str(tmp_path))
    assert isinstance(made, TieredSessionService)
    entries = yaml.safe_load((tmp_path / "services.yaml").read_text())["services"]
    assert [entry["scheme"] for entry in entries] == list(SCHEMES)
    written = (tmp_path / "services.yaml").read_text()
    status, out, _ = invoke("init", tmp_path, "--json")
    assert (status, json.loads(out)["added"]) == (0, [])
    assert (tmp_path / "services.yaml").read_text() == written


OWN = "  - scheme: mine\n    type: memory\n    class: my.Memory\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("services.yaml", f"# ours\nservices:  # all of them\n{OWN}"),
        ("services.yaml", f"services:\n{OWN}other: {{a: 1}}\n"),
        ("services.yaml", f"services:\n{OWN}".replace("  - ", "- ").replace("    ", "  ")),
        ("services.yaml", f"services:\n\n  # the memory\n{OWN}".rstrip()),
        ("services.yml", "other: 1"),
        ("services.yaml", "services:\n"),
        ("services.yaml", "# nothing yet\n"),
        ("services.yaml", ""),
        (
            "services.yaml",
            f"services:\n{OWN}  - scheme: tiered\n    type: session\n    class: {FACTORY}\n",
        ),
    ],
)
def test_init_adds_to_what_is_there(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    old = yaml.safe_load(text) or {}
    assert invoke("init", tmp_path)[0] == 0
    assert os.listdir(tmp_path) == [name]
    written = (tmp_path / name).read_text()
    assert [line for line in text.splitlines() if line] == [
        line for line in written.splitlines() if line in text.splitlines() and line
    ]
    new = yaml.safe_load(written)
    listed = old.get("services") or []
    assert {e["scheme"] for e in new["services"]} == {*SCHEMES, *(e["scheme"] for e in listed)}
    assert [e for e in new["services"] if e in listed] == listed
    assert {k: v for k, v in new.items() if k != "services"} == {
        k: v for k, v in old.items() if k != "services"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [{scheme: mine, type: memory, class: my.Memory}]\n", "cannot be added to safely"),
        ("services: none\n", "does not hold a list"),
        ("- a\n", "does not hold a list"),
        ("services: [\n", "not hold a list|not valid"),
        ("services:\n  - {scheme: tiered, type: session, class: my.Own}\n", "gives tiered to another class"),
        ("other: 1\n---\nmore: 2\n", "not hold a list|not valid"),
    ],
)
def test_init_refuses_with_the_snippet_what_it_cannot_add_to(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(text)
    status, _, err = invoke("init", tmp_path)
    assert status == 1
    assert FACTORY in err
    assert any(part in err for part in message.split("|")), err
    assert file.read_text() == text
    status, out, _ = invoke("init", tmp_path, "--json")
    assert status == 1
    assert "tiered" in yaml.safe_load(json.loads(out)["add"])["services"][0]["scheme"]


def test_init_leaves_a_file_alone_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services.yaml").write_text("other: 1\n")
    monkeypatch.setattr("tiered_sessions.cli.adk_services.find_spec", lambda name: None)
    status, _, err = invoke("init", tmp_path)
    assert status == 1
    assert "PyYAML" in err
    assert (tmp_path / "services.yaml").read_text() == "other: 1\n"


def test_init_needs_a_folder(tmp_path: Path) -> None:
    assert invoke("init", tmp_path / "none") == (2, "", f"There is no folder {tmp_path / 'none'}")


# --- adk check -----------------------------------------------------------------------------------


def check(uri: str, folder: Path) -> tuple[int, dict[str, Any]]:
    status, out, _ = invoke("check", uri, "--agents-dir", folder, "--json")
    return status, json.loads(out)


def test_check_says_that_a_uri_resolves(tmp_path: Path) -> None:
    invoke("init", tmp_path)
    status, found = check(f"tiered+sqlite:///a.db?cache={CACHE}", tmp_path)
    assert status == 0
    assert found["resolves"]
    assert found["service"] == "tiered_sessions.adk.TieredSessionService"
    assert found["reasons"] == []
    assert "p%40ss" not in json.dumps(found)
    assert not (tmp_path / "a.db").exists()
    assert "resolves to" in invoke("check", "tiered+sqlite:///a.db", "--agents-dir", tmp_path)[1]


def test_check_reads_services_py(tmp_path: Path) -> None:
    (tmp_path / "services.py").write_text("from tiered_sessions.adk import register\nregister()\n")
    assert check("tiered+sqlite:///a.db", tmp_path)[0] == 0


SERVICES = "services:\n  - {scheme: tiered+sqlite, type: session, class: CLASS}\n"


@pytest.mark.parametrize(
    ("uri", "files", "why"),
    [
        ("tiered+sqlite:///a.db", {}, ["has no services.yaml", "tiered-sessions adk init"]),
        ("tiered+sqlite:///a.db", {"services.yaml": "a: [\n"}, ["Failed to load services.yaml"]),
        (
            "tiered+sqlite:///a.db",
            {"services.yaml": SERVICES.replace("CLASS", "no.such.thing")},
            ["Could not import class no.such.thing"],
        ),
        ("tiered+sqlite:///a.db", {"services.py": "1 / 0\n"}, ["Failed to load services.py", "division"]),
        (
            "tiered+sqlite:///a.db",
            {"services.yaml": "a: [\n", "services.py": "import tiered_sessions.adk as a\na.register()\n"},
            ["Failed to load services.yaml", "without this scheme"],
        ),
        (
            "tiered+sqlite:///a.db",
            {"services.yaml": SERVICES.replace("CLASS", "types.SimpleNamespace")},
            ["registered, for types.SimpleNamespace"],
        ),
        ("tiered+sqlit:///a.db", {}, ["did you mean tiered+sqlite"]),
        ("tiered+postgresql+psycopg_async://h/d", {}, ["underscore"]),
        ("postgresql+asyncpg://u:secret@h/d", {}, ["write tiered+postgresql+asyncpg://"]),
        ("redis://:secret@h/0", {}, ["write tiered+postgresql://"]),
        ("just-a-name", {}, ["has no scheme"]),
        ("tiered://u:secret@h/d", {}, ["does not say which database"]),
    ],
)
def test_check_says_why_a_uri_does_not_resolve(
    uri: str, files: dict[str, str], why: list[str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    status, found = check(uri, tmp_path)
    assert status == 1
    assert not found["resolves"]
    reasons = "\n".join(found["reasons"])
    assert all(part in reasons for part in why), reasons
    assert "secret" not in json.dumps(found)


def test_check_says_what_the_service_itself_refuses(tmp_path: Path) -> None:
    invoke("init", tmp_path)
    status, found = check("tiered+postgresql://u:secret@h:port/d", tmp_path)
    assert status == 1
    assert "ConfigurationError" in found["reasons"][0]
    assert "secret" not in json.dumps(found)


def test_check_sees_a_module_that_shadows_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    agents = tmp_path / "agents"
    for folder in (elsewhere, agents):
        folder.mkdir()
    (elsewhere / "services.py").write_text("")
    (agents / "services.py").write_text("from tiered_sessions.adk import register\nregister()\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    __import__("services")
    status, found = check("tiered+sqlite:///a.db", agents)
    assert status == 1
    assert any(str(elsewhere / "services.py") in reason for reason in found["reasons"])


def test_check_notes_which_command_looks_where(tmp_path: Path) -> None:
    agent = tmp_path / "one"
    agent.mkdir()
    (agent / "agent.py").write_text("")
    invoke("init", tmp_path)
    assert any(f"adk run {agent}" in note for note in check("tiered+sqlite:///a", tmp_path)[1]["notes"])
    invoke("init", agent)
    assert not any("which has none" in note for note in check("tiered+sqlite:///a", tmp_path)[1]["notes"])
    assert "is one agent" in check("tiered+sqlite:///a", agent)[1]["notes"][0]


def test_check_needs_a_folder_and_google_adk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("check", "tiered://", "--agents-dir", tmp_path / "none")[0] == 2
    monkeypatch.setitem(sys.modules, MODULE, None)
    status, _, err = invoke("check", "tiered://", "--agents-dir", tmp_path)
    assert status == 2
    assert "tiered-sessions[adk]" in err


def test_the_commands_are_there_without_google_adk() -> None:
    """Importing the command line imports neither google-adk nor SQLAlchemy."""
    code = (
        "import sys, tiered_sessions.cli.app; "
        "print([n for n in ('google.adk', 'sqlalchemy', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the example ---------------------------------------------------------------------------------


def test_the_examples_services_file_is_what_init_writes(tmp_path: Path) -> None:
    invoke("init", tmp_path)
    assert (EXAMPLE / "services.yaml").read_text() == (tmp_path / "services.yaml").read_text()


def adk(*arguments: object, cwd: Path) -> str:
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "google.adk.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        env=environment,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("store", servers.STORES)
async def test_adk_run_plays_the_example_on_a_tiered_uri(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A folder as its README says, a replayed input, no network; then the history is in the database."""
    shutil.copytree(EXAMPLE, tmp_path / "adk_chat", ignore=shutil.ignore_patterns("__pycache__", ".adk"))
    url = {"sqlite": "sqlite_url", "postgresql": "postgresql_url", "mariadb": "mysql_url"}[store]
    database = str(request.getfixturevalue(url))
    cache = "none" if store == "sqlite" else quote(str(request.getfixturevalue("redis_url")), safe="")
    uri = f"tiered+{database}?cache={cache}"
    told = adk(
        "run",
        tmp_path / "adk_chat",
        "--replay",
        EXAMPLE / "replay.json",
        "--session_service_uri",
        uri,
        cwd=tmp_path,
    )
    assert "[librarian]: We own 2 of Dune." in told
    assert "[librarian]: Dune is yours." in told
    assert "[librarian]: Ulysses is not in." in told
    assert "You said: Do you have Dune?; Then lend me Dune; lend me Ulysses" in told
    service = create_session_service(uri)
    (session,) = (await service.list_sessions(app_name="adk_chat")).sessions
    assert session.state["user:books"] == ["Dune"]
    assert session.state["app:lent"] == {"dune": 1}
    assert session.state["last_title"] == "Dune"
    assert not any(key.startswith("temp:") for key in session.state)
    whole = await service.get_session(app_name="adk_chat", user_id=session.user_id, session_id=session.id)
    assert whole is not None
    assert len(whole.events) == 3 * 4 + 2
    await service.close()


def test_the_example_names_a_real_model_in_one_line() -> None:
    lines = (EXAMPLE / "agent.py").read_text().splitlines()
    assert sum(line.startswith("MODEL = ") for line in lines) == 1
    assert any(line.startswith("#") and 'MODEL = "gemini' in line for line in lines)
