"""The benchmark as it is run: the shortest form on SQLite, which needs no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main

CELLS = {
    "sqlite/hot-all-20/c1",
    "sqlite/hot-all-20/c32",
    "sqlite/append/c1",
    "sqlite/append/c32",
    "sqlite/turn/c1",
    "sqlite/create/c1",
    "sqlite/delete/c1",
}


def test_the_smoke_run_measures_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, tables, folder = tmp_path / "figures.json", tmp_path / "tables.md", tmp_path / "databases"
    folder.mkdir()
    given = ["--smoke", "--minutes", "5", "--families", "sqlite", "--folder", str(folder)]
    status = main([*given, "--json", str(figures), "--markdown", str(tables)])
    assert status == 0, capsys.readouterr().err
    found = json.loads(figures.read_text())
    assert not found["missing"]
    assert not found["cut"]
    assert set(found["cells"]) == CELLS
    for subjects in found["cells"].values():
        assert set(subjects) == {"adk", "ours"}
        for measured in subjects.values():
            assert measured["rate"] > 0
            assert all(one["checked"] >= one["operations"] for one in measured["repeated"])
    assert "worst row" in tables.read_text()
    assert list(folder.iterdir()) == []

    shown = main(["--show", str(figures)])
    assert shown == 0
    assert "sqlite/hot-all-20/c1" in capsys.readouterr().out


def test_the_cells_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--full", "--list", "--workloads", "hot-*", "--families", "postgresql"]) == 0
    listed = capsys.readouterr().out
    assert "postgresql/hot-all-2000/c32: adk, ours, raw" in listed
    assert "append" not in listed
