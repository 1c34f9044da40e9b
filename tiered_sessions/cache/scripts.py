"""The Lua scripts, as text with its digest."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_LUA = files(__package__) / "lua"


class Script(NamedTuple):
    """A script's text and the SHA-1 a server calls it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Returns the script `name` with the prelude before it."""
    text = "\n".join((_LUA / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
