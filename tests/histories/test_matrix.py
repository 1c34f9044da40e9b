"""The fault matrix in its short form: every fault is made a few times under load, and the checker judges."""

from __future__ import annotations

import pytest

from tests.histories.faults import all_faults
from tests.histories.holding import hold
from tests.histories.matrix import chosen

MODULES = sorted({type(fault).__module__ for fault in all_faults()})

pytestmark = [pytest.mark.server, pytest.mark.slow]


# A fault's own preparations, a dozen of them, on a machine that does other things as well.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("module", MODULES, ids=[name.rpartition("_")[2] for name in MODULES])
async def test_on_postgresql_and_redis(module: str) -> None:
    faults = [fault for fault in chosen((), "postgresql") if type(fault).__module__ == module]
    await hold(faults, "postgresql")
