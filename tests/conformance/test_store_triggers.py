"""The contract of the store holds with triggers: our own writes never notice them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conformance.store_backends import backend_url, open_store
from tiered_sessions.store.migrations.triggers import install_triggers
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.testing import StoreSuite


class TestStoreWithTriggers(StoreSuite):
    """What every store must do."""

    @pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[SqlSessionStore]:
        backend = str(request.param)
        async with open_store(backend_url(request, backend), backend) as opened:
            await install_triggers(opened.engine)
            yield opened
