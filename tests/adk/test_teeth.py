"""The conformance tests have teeth: without a rule, the numbers that state it fail, and no others do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adk.matrix import items_of

ROOT = Path(__file__).parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in Path(__file__).parent.glob("test_conformance_*.py"))


def failing(mutation: str) -> set[int]:
    """Returns the items that fail on SQLite when a rule is taken out."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rf",
        "-p",
        "tests.adk.mutations",
        "-k",
        "ours-sqlite-none",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *FILES],
        cwd=ROOT,
        env={**environment, "TIERED_SESSIONS_MUTATION": mutation},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    names = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    return {number for name in names for number in items_of(name)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutation", "items"),
    [
        ("", set()),
        ("tag check", {26, 27, 36, 42, 43}),
        ("trimming of temp:", {24, 25}),
        ("scope split", {5, 6, 42, 43, 44}),
    ],
)
def test_without_a_rule_its_number_is_red(mutation: str, items: set[int]) -> None:
    assert failing(mutation) == items
