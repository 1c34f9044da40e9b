"""A skip is always printed, and in CI fails the run unless its reason was agreed to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip("nothing: not agreed to")
"""


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a suite with one unexpected skip under this project's conftest.py."""
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p tests.conftest\nasyncio_mode = auto\n")
    clean = {k: v for k, v in os.environ.items() if k not in ("CI", "TIERED_SESSIONS_REQUIRE")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    variables = {**clean, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)


def test_on_a_laptop_a_skip_is_printed(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout
    assert "nothing: not agreed to" in result.stdout


@pytest.mark.parametrize("options", [(), ("-n", "1")])
@pytest.mark.parametrize("variable", ["CI", "TIERED_SESSIONS_REQUIRE"])
def test_in_ci_an_unexpected_skip_fails_the_run(
    tmp_path: Path, options: tuple[str, ...], variable: str
) -> None:
    result = run(tmp_path, *options, **{variable: "postgresql"})
    assert result.returncode == 1, result.stdout
    assert "skips that are not in tests/skips.txt" in result.stdout
