"""Names of the keys in Redis: the only place that knows them."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from ..records import ScopeKey

FORMAT = "ts2"
"""The format of key and value. Another format is another key, so versions never misread (R27)."""


def encode(part: str) -> str:
    """Returns `part` with everything but letters, digits and `-._~` percent-encoded.

    Braces would move a hash tag, slashes and colons would let two ids meet in one key.
    """
    return quote(part, safe="", errors="surrogatepass")


@lru_cache(8192)
def entry_key(namespace: str, key: ScopeKey) -> str:
    """Returns the name of the one key that holds the entry, the masks and the lease of `key`.

    The user's state lies in the slot of the user's sessions, the app's in a slot of its own.
    """
    prefix = f"{FORMAT}:{encode(namespace)}:{{{encode(key.app_name)}"
    if key.kind == "app":
        return f"{prefix}}}:a"
    if key.kind == "user":
        return f"{prefix}/{encode(key.user_id)}}}:u"
    return f"{prefix}/{encode(key.user_id)}}}:s:{encode(key.session_id)}"


def drain_key(namespace: str) -> str:
    """Returns the name of the key that elects the fleet's one drainer."""
    return f"{FORMAT}:{encode(namespace)}:drain"
