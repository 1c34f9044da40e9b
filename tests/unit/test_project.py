"""What the packaging files promise: extras, lock file, versions, data files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import tiered_sessions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_said_once() -> None:
    assert PROJECT["version"] == tiered_sessions.__version__


def test_no_extra_is_empty() -> None:
    assert all(PROJECT["optional-dependencies"].values())


def test_the_lock_file_names_versions_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^\s*-", lock, re.MULTILINE)
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    wanted = {re.split(r"[\[<>=; ]", name)[0].lower() for name in PROJECT["dependencies"]}
    assert wanted <= locked


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tiered_sessions/")}
    files = (path for path in (ROOT / "tiered_sessions").rglob("*") if path.is_file())
    source = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert packed == source
    assert any(name.endswith(".lua") for name in packed)
    assert "tiered_sessions/py.typed" in packed
