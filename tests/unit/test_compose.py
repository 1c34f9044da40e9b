"""docker-compose.yml is valid, keeps no secret and runs Redis as a cache."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


def test_the_file_is_valid_by_the_compose_schema() -> None:
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
    ]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_secrets_come_from_the_environment_or_stop_the_start() -> None:
    text = COMPOSE.read_text()
    passwords = re.findall(r"^\s+\w*PASSWORD: (.*)$", text, re.MULTILINE)
    assert len(passwords) == 2
    assert all(re.fullmatch(r"\$\{\w+:\?set \w+ .*\}", value) for value in passwords)


def test_redis_is_a_bounded_cache_without_persistence() -> None:
    text = COMPOSE.read_text()
    for setting in ("--maxmemory ", "--maxmemory-policy allkeys-lru", '--save ""', "--appendonly no"):
        assert setting in text
    assert text.count("healthcheck:") == 2
