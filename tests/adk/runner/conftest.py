"""The databases and services that stages stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests import servers
from tiered_sessions import TieredConfig


@pytest.fixture(scope="module", params=servers.STORES)
def store(request: pytest.FixtureRequest) -> str:
    """A kind of database."""
    return str(request.param)


@pytest.fixture(scope="module")
def urls(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An empty database for stock and one for ours."""
    from tests.adk.scripted import databases

    with databases(store, tmp_path_factory.mktemp("adk")) as found:
        yield found


@pytest.fixture
async def make(urls: dict[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Callable[[str], Any]]:
    """Makes a service, stock or ours; databases on a server get Redis in front of ours."""
    from google.adk.sessions import DatabaseSessionService

    from tiered_sessions.adk import TieredSessionService

    on_server = not urls["ours"].startswith("sqlite")
    cache = request.getfixturevalue("redis_url") if on_server else "memory"
    made: list[Any] = []

    def build(who: str) -> Any:
        made.append(
            DatabaseSessionService(db_url=urls[who])
            if who == "stock"
            else TieredSessionService(urls[who], cache=cache, config=TieredConfig(shared_events="check"))
        )
        return made[-1]

    yield build
    for service in made:
        await service.close()
