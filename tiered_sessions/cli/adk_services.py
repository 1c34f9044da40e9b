"""The `services.yaml` of an agents folder: ours is added, what is there stays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ..adk_registry import FACTORY, SCHEMES
from ..errors import ConfigurationError

_HEAD: Final = "# Read by `adk web`, `adk api_server` and `adk run`: services by the scheme of their URI.\n"


class ServicesFileError(ConfigurationError):
    """The services file cannot be added to without risk; it was not changed.

    Attributes:
        snippet: What its owner may add.
    """

    def __init__(self, message: str, snippet: str) -> None:
        super().__init__(message)
        self.snippet = snippet


def add_services(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Makes the folder's services file register every scheme; returns the file and what was added.

    Raises:
        ConfigurationError: There is no such folder.
        ServicesFileError: The file is there and cannot be added to safely; it was not changed.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}")
    file = folder / "services.yaml"
    if not file.exists() and (folder / "services.yml").exists():
        file = folder / "services.yml"
    if not file.exists():
        with file.open("x", encoding="utf-8") as new:
            new.write(_HEAD + _block(SCHEMES))
        return file, SCHEMES
    text = file.read_text(encoding="utf-8")
    if find_spec("yaml") is None:
        why = f"{file} exists, and PyYAML, which google-adk brings, is not there to read it"
        raise ServicesFileError(why, _block(SCHEMES))
    added, merged = _merged(file, text)
    if added:
        file.write_text(merged, encoding="utf-8")
    return file, added


def _block(schemes: Iterable[str]) -> str:
    return "services:\n" + _entries(schemes, "  ")


def _entries(schemes: Iterable[str], indent: str) -> str:
    return "".join(f"{indent}- {{scheme: {s}, type: session, class: {FACTORY}}}\n" for s in schemes)


def _merged(file: Path, text: str) -> tuple[tuple[str, ...], str]:
    old = _parsed(file, text)
    listed = old.get("services") or []
    classes = {entry.get("scheme"): entry.get("class") for entry in listed if isinstance(entry, dict)}
    taken = [scheme for scheme in SCHEMES if classes.get(scheme, FACTORY) != FACTORY]
    if taken:
        raise ServicesFileError(
            f"{file} gives {', '.join(taken)} to another class; take that out first", _block(taken)
        )
    missing = tuple(scheme for scheme in SCHEMES if scheme not in classes)
    if not missing:
        return (), text
    text = text if text.endswith("\n") or not text else text + "\n"
    # Comments and layout stay only if text is added to text; what YAML makes of it is the check.
    merged = _inserted(text, missing)
    new = _parsed(file, _block(missing))["services"]
    if _reading(merged) != old | {"services": [*new, *listed]}:
        raise ServicesFileError(f"{file} cannot be added to safely as it is laid out", _block(missing))
    return missing, merged


def _inserted(text: str, missing: tuple[str, ...]) -> str:
    head = re.search(r"^services:[ \t]*(#.*)?\n", text, re.MULTILINE)
    if head is None:
        return text + _block(missing)
    item = re.search(r"^([ \t]*)- ", text[head.end() :], re.MULTILINE)
    return text[: head.end()] + _entries(missing, item[1] if item else "  ") + text[head.end() :]


def _parsed(file: Path, text: str) -> dict[str, Any]:
    found = _reading(text)
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("services", []), list | None):
        raise ServicesFileError(f"{file} does not hold a list of services", _block(SCHEMES))
    return found


def _reading(text: str) -> Any:
    """Returns what ADK reads in the text; an object equal to nothing if it is not YAML."""
    yaml = import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return object()
