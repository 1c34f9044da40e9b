"""Pickled actions of google-adk's V0 layout become plain data, and nothing in them ever runs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adk import old_databases
from tiered_sessions.errors import UnknownPickleError
from tiered_sessions.store.migrations.unpickle import read_actions

MODEL = b"cgoogle.adk.events.event_actions\nEventActions\n"


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


def model(value: bytes) -> bytes:
    """A pickle of an `EventActions` whose state delta is that pickled value under "k"."""
    fields = b"}" + text("state_delta") + b"}" + text("k") + value + b"ss"
    return b"\x80\x02" + MODEL + b")\x81}" + text("__dict__") + fields + b"sb."


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


def attacks(directory: Path) -> dict[str, bytes]:
    import builtins
    import functools
    import os

    mark = str(directory / "ran")
    return {
        "posix.system": pickle.dumps(_Calls(os.system, f"touch {mark}")),
        "subprocess.run": pickle.dumps(_Calls(subprocess.run, ["touch", mark])),
        "builtins.eval": pickle.dumps(_Calls(builtins.eval, f"open({mark!r}, 'w')")),
        "io.open": pickle.dumps(_Calls(builtins.open, mark, "w")),
        "builtins.getattr": pickle.dumps(_Calls(builtins.getattr, "x", "y")),
        "functools.partial": pickle.dumps(_Calls(functools.partial, print)),
        "importlib.import_module": pickle.dumps(_Calls(__import__("importlib").import_module, "antigravity")),
        "datetime.datetime.now": b"\x80\x04" + text("datetime") + text("datetime.now") + b"\x93)R.",
        "google.adk.tools.load_web_page.os.system": b"\x80\x04"
        + text("google.adk.tools.load_web_page")
        + text("os.system")
        + b"\x93"
        + text(f"touch {mark}")
        + b"\x85R.",
        "collections.Counter": b"\x80\x02ccollections\nCounter\n)R.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"Pname\n.",
        "inside a model": model(b"cos\nsystem\n" + text(f"touch {mark}") + b"\x85R"),
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_a_pickle_that_would_run_something_is_refused_by_name(name: str, tmp_path: Path) -> None:
    expected = {"an extension": ValueError}.get(name, UnknownPickleError)
    with pytest.raises(expected) as caught:
        read_actions(attacks(tmp_path)[name])
    assert name in str(caught.value) or name in ("an extension", "inside a model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", attacks(Path()))
def test_as_text_nothing_runs_either(name: str, tmp_path: Path) -> None:
    try:
        value = read_actions(attacks(tmp_path)[name], unknown_as_text=True)
    except (ValueError, UnknownPickleError):
        pass
    else:
        assert value == {"state_delta": {"k": "<os.system>"}}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target", ["cuuid\nUUID\n", "cdatetime\ndatetime\n", "cdecimal\nDecimal\n", MODEL.decode()]
)
def test_a_pickle_cannot_change_a_class_of_ours(target: str) -> None:
    state = b"N}" + text("__str__") + text("owned") + b"s\x86b"
    with pytest.raises(ValueError, match="damaged"):
        read_actions(b"\x80\x02" + target.encode() + state + b".")
    assert str(uuid.UUID(int=1)).endswith("1")
    assert callable(datetime.__str__)
    assert str(Decimal(1)) == "1"
    assert read_actions(model(b"N")) == {"state_delta": {"k": None}}


def test_a_small_pickle_cannot_become_a_large_document() -> None:
    def of(place: int) -> bytes:
        return b"h" + bytes([place])

    # Each list holds the one before it twice.
    doubled = b"".join(b"]" + 2 * (of(i) + b"a") + b"q" + bytes([i + 1]) + b"0" for i in range(60))
    doubled = b"]q\x000" + doubled + of(60)
    with pytest.raises(ValueError, match="too large"):
        read_actions(model(doubled))
    with pytest.raises(ValueError, match="damaged"):
        read_actions(model(b"cbuiltins\nbytearray\n" + number(2**40) + b"\x85R"))
    with pytest.raises(ValueError, match="itself"):
        read_actions(model(b"]q\x00h\x00a"))


def test_values_of_the_standard_library_become_what_google_adk_writes() -> None:
    values: dict[str, Any] = {
        "when": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "day": date(2025, 1, 2),
        "long": timedelta(hours=25),
        "price": Decimal("1.50"),
        "id": uuid.UUID(int=7),
        "path": PurePosixPath("/a/b"),
        "raw": b"\xff\xfb",
        "buffer": bytearray(b"\xff"),
        "set": {1},
        "pair": (1, None),
        "whole": 2**70,
        3: True,
        None: 1,
    }
    assert read_actions(pickle.dumps(values)) == {
        "when": "2025-01-02T03:04:05Z",
        "day": "2025-01-02",
        "long": "P1DT1H",
        "price": "1.50",
        "id": str(uuid.UUID(int=7)),
        "path": "/a/b",
        "raw": "__s=",
        "buffer": "_w==",
        "set": [1],
        "pair": [1, None],
        "whole": 2**70,
        "3": True,
        "None": 1,
    }


@given(st.binary(max_size=200))
def test_any_bytes_give_data_or_a_typed_error(data: bytes) -> None:
    try:
        assert isinstance(read_actions(data), dict)
    except (ValueError, UnknownPickleError):
        return


@given(st.integers(0, 2**30), st.integers(0, 255))
def test_a_damaged_pickle_gives_data_or_a_typed_error(place: int, byte: int) -> None:
    whole = bytearray(pickle.dumps({"state_delta": {"a": [1, 2.5, uuid.UUID(int=3), datetime(2025, 1, 1)]}}))
    whole[place % len(whole)] = byte
    try:
        read_actions(bytes(whole))
    except (ValueError, UnknownPickleError):
        return


def test_real_pickles_are_read_where_google_adk_cannot_be_imported(tmp_path: Path) -> None:
    with old_databases.load("1.21.0", "sqlite", tmp_path):
        code = f"""
import sqlite3, sys
sys.modules["google"] = sys.modules["fastapi"] = None
from tiered_sessions.store.migrations.unpickle import read_actions
rows = sqlite3.connect({str(tmp_path / "old.db")!r}).execute("SELECT actions FROM events WHERE id = 'e3'")
print(read_actions(rows.fetchone()[0])["requested_auth_configs"]["c1"]["raw_auth_credential"]["auth_type"])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "oauth2", done.stderr
