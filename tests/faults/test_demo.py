"""`tiered-sessions demo`, run as a person would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def environment(folder: Path) -> dict[str, str]:
    """The demo's surroundings: this checkout, and a folder of its own for temporary files."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs the demo in an empty folder; returns its exit status and report."""
    command = [sys.executable, "-m", "tiered_sessions.cli.app", "demo", "--json", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    assert not list(folder.glob("tiered-sessions-demo-*")), "the temporary folder is left"
    return done.returncode, json.loads(done.stdout)


def assert_clean(report: dict[str, Any]) -> None:
    """Nothing lost or stale, and each phase was answered where it should be."""
    assert report["failures"] == report["lost"] == report["stale"] == report["different"] == []
    assert report["ok"]
    places = {phase: set(found) for phase, found in report["reads"].items()}
    assert places["up"] & {"process", "cache"}
    assert places["dead"] == {"store"}
    assert places["back"] & {"process", "cache"}
    assert report["cache_answers_again"]


def test_the_demo_on_its_own_servers(tmp_path: Path) -> None:
    status, report = run(tmp_path)
    assert_clean(report)
    assert status == 0
    assert report["turns"] == len(report["rows"]) == 14
    assert report["appends"]["count"] == 60
    assert [incident["text"] for incident in report["incidents"]] == ["killed", "restarted empty"]
    assert {row["server"] for row in report["rows"]} == {"A", "B"}


def test_the_demo_on_servers_that_were_named(tmp_path: Path, postgresql_url: str, redis_url: str) -> None:
    status, report = run(tmp_path, "--db", postgresql_url, "--cache", redis_url, "--turns", "6")
    assert_clean(report)
    assert status == 0
    assert [incident["text"] for incident in report["incidents"]] == ["cut off", "reachable again"]


def test_a_naive_cache_is_found_out(tmp_path: Path) -> None:
    status, report = run(tmp_path, "--cache-factory", "tests.faults.naive_cache:NaiveCache")
    assert status == 1
    assert report["stale"]
    assert not report["lost"]


def test_the_shortest_run_and_plain_output(tmp_path: Path) -> None:
    """Not a terminal: the table comes once, without a control character."""
    command = [sys.executable, "-m", "tiered_sessions.cli.app", "demo", "--turns", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert "cache killed" in done.stdout
    assert "cache restarted empty" in done.stdout
    assert done.stdout.strip().endswith("lost 0, stale 0, different 0.")


def children(pid: int) -> list[int]:
    """Lists the child processes of `pid`."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    """Says whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A demo in the middle of its run, with its three children."""
    command = [sys.executable, "-m", "tiered_sessions.cli.app", "demo"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A suite that a script has started in its background ignores Ctrl-C, and so do its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    ) as demo:
        deadline = monotonic() + 30
        while len(found := children(demo.pid)) < 3 and demo.poll() is None:
            assert monotonic() < deadline, "the demo did not start its children"
        yield demo, found
        demo.kill()
        for pid in filter(alive, found):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see child processes")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_demo_leaves_no_process(
    name: str, running: tuple[subprocess.Popen[bytes], list[int]], tmp_path: Path
) -> None:
    """Ctrl-C and kill clean up everything; after kill -9 the children end by themselves."""
    demo, found = running
    assert len(found) == 3
    demo.send_signal(signal.Signals[name])
    assert demo.wait(30) != 0
    deadline = monotonic() + 30
    while any(map(alive, found)):
        assert monotonic() < deadline, f"left behind: {[pid for pid in found if alive(pid)]}"
    if name != "SIGKILL":
        assert not list(tmp_path.glob("tiered-sessions-demo-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_alone_runs_the_demo(tmp_path: Path) -> None:
    """Builds the wheel, installs it with its dependencies in an empty environment, runs the demo."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "-q", f"{wheel}[demo]"],
        check=True,
        capture_output=True,
        timeout=400,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [programs / "tiered-sessions", "demo", "--json"],
        cwd=empty,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_clean(json.loads(done.stdout))
    assert list(empty.iterdir()) == []
