"""What an operator should know about a cache server. Looks only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from .connections import FAULTS
from .keys import FORMAT
from .resp import Packed
from .urls import connect

_TIMEOUT = 3.0
_KEY = f"{FORMAT}:doctor"


@dataclass(frozen=True)
class CacheHealth:
    """What one server of the cache answered.

    Attributes:
        reachable: It answered at all.
        reason: Why it did not.
        version: As it names itself.
        policy: Its eviction policy; empty if it does not say.
        maxmemory: Bytes it may use, 0 for no bound; None if it does not say.
        used: Bytes it uses; None if it does not say.
        stamped: It says which process it is (INFO), so that a failover is noticed.
        scripts: It runs the package's scripts.
        master: It is no replica.
    """

    reachable: bool
    reason: str = ""
    version: str = ""
    policy: str = ""
    maxmemory: int | None = None
    used: int | None = None
    stamped: bool = False
    scripts: bool = False
    master: bool = True


async def look_at_cache(url: str) -> CacheHealth:
    """Looks at the server at `url`; of a cluster, at one of its masters.

    Raises:
        ConfigurationError: The URL cannot be read.
    """
    connections = connect(url, _TIMEOUT, 1)
    try:
        answers = await connections.fly(
            _KEY,
            Packed(
                [
                    ("INFO", "server"),
                    ("INFO", "memory"),
                    ("INFO", "replication"),
                    ("CONFIG", "GET", "maxmemory*"),
                    ("EVAL", "return redis.call('TIME')", 0),
                    ("EXISTS", _KEY),
                ]
            ),
        )
    except FAULTS as error:
        # A server's message may show settings; its kind says enough.
        return CacheHealth(False, type(error).__name__)
    finally:
        await connections.close()
    server, memory, replication, config, script, exists = answers.replies
    if isinstance(exists, ResponseError):
        return CacheHealth(False, f"the server refuses commands ({_code(exists)})")
    told = _told(config)
    return CacheHealth(
        True,
        version=_field(server, "valkey_version") or _field(server, "redis_version"),
        policy=told.get("maxmemory-policy") or _field(memory, "maxmemory_policy"),
        maxmemory=_number(told.get("maxmemory") or _field(memory, "maxmemory")),
        used=_number(_field(memory, "used_memory")),
        stamped=bool(answers.stamp),
        scripts=not isinstance(script, ResponseError),
        master=_field(replication, "role") in ("", "master"),
    )


def _code(error: ResponseError) -> str:
    found = re.match(r"[A-Z]{2,}\b", str(error))
    return found[0] if found else type(error).__name__


def _field(reply: Any, name: str) -> str:
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
    found = re.search(rf"^{name}:(.*?)\r?$", text, re.MULTILINE)
    return found[1] if found else ""


def _told(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {key.decode(): value.decode() for key, value in reply.items()}
    if not isinstance(reply, list):
        return {}
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
