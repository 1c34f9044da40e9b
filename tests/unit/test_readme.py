"""The README's Python runs as printed, host names and passwords aside."""

from __future__ import annotations

import ast
import inspect
import re
import types
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def test_there_is_a_snippet_to_adopt() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_a_snippet_runs(
    number: int, sqlite_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r'"(?:postgres|mysql|mariadb|sqlite)[\w+]*://[^"]*"', repr(sqlite_url), SNIPPETS[number])
    text = re.sub(r'"redis://[^"]*"', repr(valkey_url), text)
    code = compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = types.FunctionType(code, {"__name__": "readme"})()
    if inspect.isawaitable(result):
        await result
