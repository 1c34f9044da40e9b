"""The numbered migrations, found by their file names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from .steps import Step


@cache
def _modules() -> tuple[str, ...]:
    names = (entry.name for entry in resources.files(__package__ or "").iterdir())
    return tuple(sorted(name.removesuffix(".py") for name in names if re.fullmatch(r"m\d{4}_\w+\.py", name)))


def latest_version() -> int:
    """The number of the newest migration."""
    return int(_modules()[-1][1:5])


@cache
def all_steps() -> Sequence[Step]:
    """Loads the numbered modules, in order, and returns their steps."""
    modules = (importlib.import_module(f"{__package__}.{name}") for name in _modules())
    return tuple(step for module in modules for step in module.STEPS)
