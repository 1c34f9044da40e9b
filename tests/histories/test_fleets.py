"""The harness: what is planted into a fleet is found, and a fleet that is well is found well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.histories import runs
from tests.histories.fleet import Fleet
from tests.histories.history import load
from tests.histories.holding import SECONDS, hold
from tests.histories.matrix import as_json, chosen
from tests.histories.report import markdown
from tests.histories.runs import NoFault, run
from tests.histories.soak import Storm

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.server, pytest.mark.slow]


async def test_without_a_fault_nothing_is_ever_stale(tmp_path: Path) -> None:
    row = await run(NoFault(), tmp_path, 2 * SECONDS)
    assert row.ok, row.verdict.examples
    assert not row.verdict.ages
    assert row.verdict.cut_off == 0
    assert row.hits > 0
    assert {"get", "append", "create", "list"} <= set(row.verdict.operations)
    operations = load(row.history).operations
    assert {one.process for one in operations} >= {"0.1", "1.1", "2.1"}
    assert any(one.user for one in operations if one.kind == "append")
    assert any(one.app for one in operations if one.kind == "append")
    assert as_json(row)["anomalies"] == {}


async def test_a_naive_cache_is_caught(tmp_path: Path) -> None:
    """Set after a read, deleted after a write: without any fault it is stale and goes backwards."""
    row = await run(
        NoFault(), tmp_path, 2 * SECONDS, settings={"cache_factory": "tests.faults.naive_cache:NaiveCache"}
    )
    assert row.verdict.anomalies["stale"] > 0
    assert not row.ok


class Planted:
    """Does something to the fleet that no row of the table allows."""

    name = "planted"
    staleness = 0.0
    store_fails = False
    config: dict[str, Any] = {"max_staleness": 3600}  # noqa: RUF012 - part of the protocol of faults

    async def run(self, fleet: Fleet) -> None:
        await fleet.progress(20)
        await self.plant(fleet)

    async def plant(self, fleet: Fleet) -> None:
        raise NotImplementedError


class KeyForEver(Planted):
    async def plant(self, fleet: Fleet) -> None:
        await fleet.admin("SET", "for-ever", "x")


class BehindEveryonesBack(Planted):
    async def plant(self, fleet: Fleet) -> None:
        for server in fleet.servers:
            await server.ask("pause")
        # What is not cached would not be missed.
        await fleet.servers[0].ask("read", [f"{user}/shared" for user in ("u0", "u1")])
        await fleet.sql("DELETE FROM events", "DELETE FROM sessions")


class DeadServer(Planted):
    async def plant(self, fleet: Fleet) -> None:
        os.kill(fleet.servers[1].pid, 9)
        await fleet.progress(1_000_000)


class NotHappening(Planted):
    async def plant(self, fleet: Fleet) -> None:
        raise AssertionError("the fault did not happen")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (KeyForEver, "no TTL"),
        (BehindEveryonesBack, "stuck"),
        (DeadServer, "broken"),
        (NotHappening, "broken"),
    ],
)
async def test_what_is_planted_into_a_fleet_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Planted], kind: str
) -> None:
    monkeypatch.setattr(runs, "SETTLED", 0.5)
    row = await run(fault(), tmp_path, 0.0, processes=2)
    assert kind in row.verdict.anomalies, row.verdict.examples


async def test_a_killed_server_loses_nothing_of_its_history(tmp_path: Path) -> None:
    async with Fleet(NoFault(), tmp_path, processes=1, clients=6) as fleet:
        [server] = fleet.servers
        await fleet.until(lambda: server.heard > 50)
        await server.kill()
        assert not server.alive
        heard = server.heard
        fleet.flush()
        assert len(fleet.history.read_bytes().splitlines()) == heard
        await server.start()
        await fleet.until(lambda: server.heard > 50)
        fleet.flush()
        operations = load(fleet.history).operations
    assert {one.process for one in operations} == {"0.1", "0.2"}
    made = [one.value for one in operations if one.kind == "append"]
    assert len(set(made)) == len(made)


def test_a_storm_is_the_same_for_the_same_seed() -> None:
    class Counting(Storm):
        def __init__(self, seed: int) -> None:
            super().__init__(chosen((), "postgresql"), seed)

        def drawn(self) -> list[str]:
            return [self._random.choice(self._faults).name for _ in range(20)]

    assert Counting(1).drawn() == Counting(1).drawn()
    assert Counting(1).drawn() != Counting(2).drawn()


def test_the_command_line(tmp_path: Path) -> None:
    """A row by its name, with its figures and its history in both forms."""
    figures, kept = tmp_path / "figures.json", tmp_path / "kept"
    command = [sys.executable, "-m", "tests.histories.matrix", "--rows", "no fault", "--seconds", "1"]
    done = subprocess.run(
        [*command, "--database", "sqlite", "--json", str(figures), "--keep", str(kept)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "no fault" in done.stdout
    [row] = json.loads(figures.read_bytes())
    assert row["anomalies"] == {}
    assert row["operations"]["append"] > 0
    assert {path.name for path in kept.iterdir()} == {"no-fault.jsonl", "no-fault.elle.json"}
    assert json.loads((kept / "no-fault.elle.json").read_bytes())[0][":type"] == ":invoke"
    report = subprocess.run(
        [sys.executable, "-m", "tests.histories.report", str(figures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    head, rule, shown = report.stdout.splitlines()
    assert head.count("|") == rule.count("|") == shown.count("|")
    assert shown.startswith("| no fault | ")
    assert shown.endswith(" | none | 0 | 0 | 0 / 0 / 0 |")


def test_the_table_says_what_was_found() -> None:
    row = {
        "fault": "redis FLUSHALL",
        "made": 3,
        "allowed_staleness": 2.0,
        "allowed_cut_off": 3.0,
        "loses_commits": False,
        "operations": {"get": 1200, "append": 34},
        "hits": 0.5,
        "outbox": 0,
        "staleness_ms": {
            "app state": {"reads": 2, "p50": 4.4, "max": 9.6},
            "append": {"reads": 1, "p50": 7.0, "max": 7.0},
        },
        "errors": {"StoreUnavailableError": 2},
        "anomalies": {"lost": 1, "torn": 1},
    }
    assert markdown([row]).splitlines()[2] == (
        "| redis FLUSHALL **(torn)** | 3 | 1,234 | 50% | 0 | append 1 (7 / 7), app state 2 (4 / 10) | 2 "
        "| 2 StoreUnavailableError | 1 / 0 / 0 |"
    )
    drained = markdown([{**row, "outbox": 5, "loses_commits": True}])
    assert " | not judged | 3 | 2 StoreUnavailableError | not judged |" in drained


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", ["mysql", "sqlite"])
async def test_on_other_databases(database: str) -> None:
    rows = ("no fault", "restarted empty", "FLUSHALL", "refuses", "before its apply arrives", "locked")
    await hold(chosen(rows, database), database)
