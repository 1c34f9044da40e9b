"""Live through ADK's web server: REST and SSE, beside stock, and as `adk web` and `adk api_server`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.adk.cli.fast_api import get_fast_api_app
from google.adk.cli.service_registry import get_service_registry
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig

from tests import servers
from tests.adk.scripted import Normaliser, Recorder, as_text, databases
from tests.processes import dying_with_us, tail, wait_until_ready
from tiered_sessions import TieredConfig
from tiered_sessions.adk import TieredSessionService, create_session_service, register

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*EXPERIMENTAL.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:fastapi.*"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "adk_chat"
SESSIONS = "/apps/adk_chat/users/ann/sessions"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agents folder that holds the example's agent and nothing that registers a service."""
    folder = tmp_path_factory.mktemp("agents")
    ignored = shutil.ignore_patterns("services.yaml", "__pycache__", ".adk")
    shutil.copytree(EXAMPLE, folder / "adk_chat", ignore=ignored)
    return folder


@pytest.fixture(params=servers.STORES)
def store(request: pytest.FixtureRequest) -> str:
    """A kind of database."""
    return str(request.param)


@pytest.fixture
def urls(store: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An empty database for stock and one for ours; routes name the app, so tests cannot share one."""
    with databases(store, tmp_path) as found:
        yield found


@pytest.fixture
def cache(urls: dict[str, str], request: pytest.FixtureRequest) -> str:
    """What is in front of ours: Redis, beside a database on a server."""
    return "memory" if urls["ours"].startswith("sqlite") else str(request.getfixturevalue("redis_url"))


@contextlib.asynccontextmanager
async def served(service: Any, agents: Path) -> AsyncIterator[httpx.AsyncClient]:
    """ADK's application over a service, called without a socket."""
    get_service_registry().register_session_service("given", lambda uri, **_: service)
    app = get_fast_api_app(
        agents_dir=str(agents),
        session_service_uri="given://",
        artifact_service_uri="memory://",
        memory_service_uri="memory://",
        web=False,
    )
    transport = httpx.ASGITransport(app=app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        await service.close()


def turn(text: str, session: str = "s", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "parts": [{"text": text}]}
    return {"app_name": "adk_chat", "user_id": "ann", "session_id": session, "new_message": message, **more}


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Returns the events of an SSE answer."""
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data:"))
    return [json.loads(line) for line in lines]


async def conversation(client: httpx.AsyncClient) -> list[Any]:
    """Every route that touches sessions, the ways they fail included; returns statuses and bodies."""
    seen: list[Any] = []

    async def ask(method: str, path: str, **body: Any) -> Any:
        answer = await client.request(method, path, **({"json": body} if body else {}))
        if answer.headers["content-type"].startswith("text/event-stream"):
            seen.append((answer.status_code, events_of(answer)))
        else:
            seen.append((answer.status_code, answer.json()))
        return seen[-1][1]

    state = {"user:name": "Ann", "app:lent": {}, "temp:x": 1, "mood": "calm"}
    await ask("POST", SESSIONS, session_id="s", state=state)
    await ask("POST", SESSIONS, session_id="s")
    await ask("POST", f"{SESSIONS}/s")
    await ask("POST", SESSIONS, session_id="t", options={"colour": "red"})
    await ask("POST", SESSIONS, session_id="t", options={"state": {}})
    await ask("GET", f"{SESSIONS}/t")
    await ask("POST", "/run", **turn("Do you have Dune?"))
    await ask("POST", "/run", **turn("lend me Dune", state_delta={"mood": "glad", "temp:y": 1}))
    await ask("POST", "/run_sse", **turn("what did I say", streaming=True))
    await ask("POST", "/run_sse", **turn("lend me Emma"))
    await ask("POST", "/run_sse", **turn("hello", session="missing"))
    await ask("POST", "/run", **turn("hello", session="missing"))
    await ask("PATCH", f"{SESSIONS}/s", state_delta={"mood": None, "user:tier": 2, "list": [1, {"a": 2}]})
    await ask("PATCH", f"{SESSIONS}/missing", state_delta={"a": 1})
    await ask("GET", f"{SESSIONS}/s")
    made = await ask("POST", SESSIONS)
    await ask("GET", f"{SESSIONS}/{made['id']}")
    await ask("GET", SESSIONS)
    await ask("DELETE", f"{SESSIONS}/s")
    await ask("DELETE", f"{SESSIONS}/s")
    await ask("GET", f"{SESSIONS}/s")
    await ask("POST", SESSIONS, session_id="s", state={"again": True})
    return seen


async def test_rest_and_sse_answer_as_with_stock(urls: dict[str, str], cache: str, agents: Path) -> None:
    left = {}
    for who in ("stock", "ours"):
        service = (
            DatabaseSessionService(db_url=urls[who])
            if who == "stock"
            else TieredSessionService(urls[who], cache=cache, config=TieredConfig(shared_events="check"))
        )
        async with served(service, agents) as client:
            seen = await conversation(client)
        statuses = [status for status, _ in seen]
        assert statuses[1:6] == [409, 409, 400, 400, 404]
        assert statuses[10:12] == [404, 404]
        assert len(seen[8][1]) > 3, "streamed"
        left[who] = as_text(Normaliser()(without_times(seen)))
    assert left["ours"] == left["stock"]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("timestamp", "lastUpdateTime")}
    return [without_times(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(params=["stock", "ours"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Stock's service or ours."""
    return str(request.param)


@pytest.fixture
def recorder(implementation: str, urls: dict[str, str], cache: str) -> Recorder:
    """A service that writes down what the server asks of it."""
    if implementation == "stock":
        return Recorder(DatabaseSessionService(db_url=urls["stock"]))
    checked = TieredConfig(shared_events="check")
    return Recorder(TieredSessionService(urls["ours"], cache=cache, config=checked))


async def test_item_51_only_the_http_list_route_lists(recorder: Recorder, agents: Path) -> None:
    async with served(recorder, agents) as client:
        await conversation(client)
        calls = recorder.taken()
        assert [name for name, _ in calls].count("list") == 1
        assert [name for name, _ in calls].count("delete") == 2
        assert "user_state" not in dict(calls)
        await client.get(SESSIONS)
        assert recorder.taken() == [("list", "ann")]


async def test_item_52_what_each_route_reads(recorder: Recorder, agents: Path) -> None:
    none = GetSessionConfig(num_recent_events=0)
    async with served(recorder, agents) as client:
        await client.post(SESSIONS, json={"session_id": "s"})
        await client.post("/run", json=turn("hello"))
        recorder.taken()
        await client.post("/run_sse", json=turn("hello"))
        assert recorder.taken() == [("get", none), ("get", None), ("append", None), ("append", None)]
        body = (await client.get(f"{SESSIONS}/s")).json()
        assert len(body["events"]) == 4
        assert recorder.taken() == [("get", None)]
        body = (await client.patch(f"{SESSIONS}/s", json={"state_delta": {"a": 1}})).json()
        assert recorder.taken() == [("get", None), ("append", None)]
        assert "content" not in body["events"][-1]
        assert body["state"]["a"] == 1


async def test_what_a_database_refuses_is_a_bad_request(urls: dict[str, str], agents: Path) -> None:
    """Stock answers 500 with the driver's text, or stores what it should not."""
    async with served(TieredSessionService(urls["ours"], cache=None), agents) as client:
        answer = await client.post(SESSIONS, json={"session_id": "x" * 300})
        assert answer.status_code == 400
        assert "128" in answer.json()["detail"]
        assert "INSERT" not in answer.text


async def test_options_of_the_rest_call_reach_the_time_to_live(tmp_path: Path, agents: Path) -> None:
    service = TieredSessionService(f"sqlite+aiosqlite:///{tmp_path / 'ttl.db'}")
    async with served(service, agents) as client:
        for session, ttl, status in (("kept", "3600s", 200), ("gone", 0.001, 200), ("bad", "soon", 400)):
            answer = await client.post(SESSIONS, json={"session_id": session, "options": {"ttl": ttl}})
            assert answer.status_code == status, answer.text
        while (await client.get(f"{SESSIONS}/gone")).status_code == 200:
            pass
        assert (await client.get(f"{SESSIONS}/kept")).status_code == 200
        assert [session["id"] for session in (await client.get(SESSIONS)).json()] == ["kept"]
        assert (await client.post(SESSIONS, json={"session_id": "gone"})).status_code == 200


async def test_get_fast_api_app_takes_our_uri_and_engine_options(tmp_path: Path, agents: Path) -> None:
    register()
    made: list[TieredSessionService] = []

    def keep(uri: str, **kwargs: Any) -> TieredSessionService:
        made.append(create_session_service(uri, **kwargs))
        return made[-1]

    get_service_registry().register_session_service("tiered+sqlite", keep)
    app = get_fast_api_app(
        agents_dir=str(agents),
        session_service_uri=f"tiered+sqlite:///{tmp_path / 'app.db'}?cache=none",
        session_db_kwargs={"pool_size": 3, "max_overflow": 0},
        web=False,
    )
    register()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1"
    ) as client:
        assert (await client.post(SESSIONS, json={"session_id": "s"})).status_code == 200
        assert (await client.get(f"{SESSIONS}/s")).json()["id"] == "s"
    assert made[0].db_engine.pool.size() == 3
    await made[0].close()


# --- as its own process --------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: str, folder: Path, uri: str) -> Iterator[httpx.Client]:
    """Runs `adk web` or `adk api_server` on a folder, with the session service of the URI, on loopback."""
    port = servers.free_port()
    adk = [sys.executable, "-m", "google.adk.cli", command, "--host", "127.0.0.1", "--port", str(port)]
    services = ["--session_service_uri", uri, "--artifact_service_uri", "memory://"]
    log = folder.parent / f"{command}-{port}.log"
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            dying_with_us([*adk, *services, str(folder)], None),
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder.parent,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            try:
                wait_until_ready(lambda: client.get("/list-apps").raise_for_status(), 60, process)
            except (RuntimeError, TimeoutError) as error:
                raise type(error)(f"adk {command} {error}: {tail(log)}") from error
            yield client
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["web", "api_server"])
def test_the_example_is_served_as_its_readme_says(command: str, tmp_path: Path) -> None:
    """The folder's services.yaml names the service, a page lets one chat, a restart forgets nothing."""
    folder = tmp_path / "adk_chat"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".adk"))
    uri = "tiered+sqlite:///chat.db"
    assert f"adk web examples/adk_chat --session_service_uri '{uri}'" in (EXAMPLE / "README.md").read_text()
    with running(command, folder, uri) as client:
        assert client.get("/list-apps").json() == ["adk_chat"]
        page = client.get("/", follow_redirects=True)
        if command == "web":
            assert page.url.path == "/dev-ui/"
            assert "<app-root" in page.text
            (script,) = re.findall(r'<script src="\./(main-[^"]+\.js)"', page.text)
            assert client.get(f"/dev-ui/{script}").headers["content-type"].startswith("text/javascript")
        else:
            assert page.status_code == 404
        assert client.post(SESSIONS, json={"session_id": "s"}).status_code == 200
        assert client.post(SESSIONS, json={"session_id": "s"}).status_code == 409
        assert texts_of(client.post("/run", json=turn("do you have Dune?"))) == ["We own 2 of Dune."]
        streamed = events_of(client.post("/run_sse", json=turn("what did I say?", streaming=True)))
        assert [event.get("partial") for event in streamed] == [True] * 6 + [None]
        changed = client.patch(f"{SESSIONS}/s", json={"state_delta": {"user:tier": 2}})
        assert changed.json()["state"] == {"user:tier": 2}
        session = client.get(f"{SESSIONS}/s").json()
        assert len(session["events"]) == 4 + 2 + 1
    with running(command, folder, uri) as client:
        assert client.get(f"{SESSIONS}/s").json() == session
        assert client.post(SESSIONS, json={"session_id": "t"}).json()["state"] == {"user:tier": 2}
        assert texts_of(client.post("/run", json=turn("what did I say?"))) == [
            "You said: do you have Dune?; what did I say?"
        ]
        assert client.delete(f"{SESSIONS}/s").status_code == 200
        assert [session["id"] for session in client.get(SESSIONS).json()] == ["t"]
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as database:
        ((name, revision),) = database.execute("SELECT id, revision FROM sessions")
    assert (name, revision) == ("t", 0), "ADK's own service knows of no revision"


def texts_of(answer: httpx.Response) -> list[str]:
    """Returns what the agent said in a turn."""
    parts = [part for event in answer.json() for part in event["content"]["parts"]]
    return [part["text"] for part in parts if "text" in part]


@pytest.mark.slow
def test_two_api_servers_share_a_conversation(agents: Path, redis_url: str) -> None:
    """Created on one, continued on the other over SSE, read on both; the URI names both tiers."""
    (agents / "services.py").write_text("from tiered_sessions.adk import register\nregister()\n")
    try:
        with servers.postgresql_database() as url, contextlib.ExitStack() as stack:
            uri = f"tiered+{url}?cache={quote(redis_url, safe='')}"
            one, two = (stack.enter_context(running("api_server", agents, uri)) for _ in range(2))
            assert one.post(SESSIONS, json={"session_id": "s"}).status_code == 200
            assert two.post(SESSIONS, json={"session_id": "s"}).status_code == 409
            for number, server in enumerate((one, two, one, two)):
                said = turn(f"hello {number}", streaming=True)
                with server.stream("POST", "/run_sse", json=said) as answer:
                    lines = [line for line in answer.iter_lines() if line.startswith("data:")]
                assert len(lines) > 3
            last = two.post("/run", json=turn("what did I say")).json()[-1]
            assert last["content"]["parts"][0]["text"] == "You said: hello 0; hello 1; hello 2; hello 3"
            bodies = [server.get(f"{SESSIONS}/s").json() for server in (one, two)]
            assert bodies[0] == bodies[1]
            assert len(bodies[0]["events"]) == 10
            assert two.delete(f"{SESSIONS}/s").status_code == 200
            assert one.get(f"{SESSIONS}/s").status_code == 404
    finally:
        (agents / "services.py").unlink()
