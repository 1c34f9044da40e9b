"""docs/adk.md: its snippet runs, its table lists what the tests show, and objects cross over as it says."""

from __future__ import annotations

import ast
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest
from google.adk.sessions import DatabaseSessionService

from tests.adk.conformance import event, reload, texts
from tests.adk.matrix import items_of
from tiered_sessions.adk import StaleSessionError, TieredSessionService

TEXT = (Path(__file__).parents[2] / "docs" / "adk.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_a_snippet_runs(number: int, sqlite_url: str, valkey_url: str) -> None:
    text, databases = re.subn(r'"postgresql[\w+]*://[^"]*"', repr(sqlite_url), SNIPPETS[number])
    text, caches = re.subn(r'"redis://[^"]*"', repr(valkey_url), text)
    assert (databases, caches) == (1, 1)
    code = compile(text, "docs/adk.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "snippet"}
    result = types.FunctionType(code, names)()
    assert inspect.isawaitable(result)
    await result
    await names["session_service"].close()


async def test_the_two_lines_of_the_readme(sqlite_url: str, valkey_url: str) -> None:
    """Out with the lines of stock ADK, in with ours: each side of the README's diff runs on one database."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    diff = re.sub(r'"postgresql[\w+]*://[^"]*"', repr(sqlite_url), diff)
    diff = re.sub(r'"redis://[^"]*"', repr(valkey_url), diff)
    for number, sign in enumerate("-+-"):
        names: dict[str, Any] = {}
        exec("\n".join(line[1:] for line in diff.splitlines() if line.startswith(sign)), names)
        service = names["session_service"]
        ids = {"app_name": "app", "user_id": "u", "session_id": "switched"}
        session = await service.get_session(**ids) or await service.create_session(**ids)
        await service.append_event(session, event(f"e{number}", timestamp=2e9 + number))
        assert texts(await reload(service, session)) == [f"e{n}" for n in range(number + 1)]
        await service.close()


def test_the_table_lists_every_difference_that_is_tested() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    tested: set[int] = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                "mark.differs" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                tested |= set(items_of(node.name))
    assert listed == tested


async def test_objects_of_one_service_in_the_other(store_url: str) -> None:
    async with (
        DatabaseSessionService(store_url) as stock,
        TieredSessionService(store_url, cache=None) as ours,
    ):
        session = await stock.create_session(app_name="app", user_id="u", session_id="crossing")
        old = await reload(stock, session)
        await ours.append_event(session, event("first", timestamp=2e9))
        with pytest.raises(StaleSessionError):
            await ours.append_event(old, event("late"))
        with pytest.raises(StaleSessionError):
            await stock.append_event(session, event("of ours"))
        session = await reload(stock, session)
        await stock.append_event(session, event("second", timestamp=2e9 + 1))
        assert (
            texts(await reload(ours, session)) == texts(await reload(stock, session)) == ["first", "second"]
        )
