"""The set-up of `make` and `.ci/run` says plainly what a machine lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FINDER = Path(__file__).parents[2] / ".ci" / "python"


def find(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the search for an interpreter."""
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([str(FINDER), *arguments], capture_output=True, text=True, env=variables)


def test_a_suitable_python_is_named() -> None:
    result = find()
    assert (result.returncode, result.stdout.strip()) == (0, sys.executable)


def test_a_python_that_is_too_old_or_absent_is_said_to_be(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = find(PYTHON=str(old))
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_missing_venv_support_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    result = find(PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "python3-venv" in result.stderr


def test_a_wanted_version_is_looked_for_among_pyenvs(tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = tmp_path / ".pyenv" / "versions" / f"{version}.0" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    # The search itself needs no program of PATH.
    result = find(version, HOME=str(tmp_path), PATH=str(tmp_path))
    assert (result.returncode, result.stdout.strip()) == (0, str(folder / "python")), result.stderr
    assert find("3.1", HOME=str(tmp_path), PATH=str(tmp_path)).returncode == 1
