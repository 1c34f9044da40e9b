"""What all conformance tests are run with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.patience import patient_caches


@pytest.fixture(scope="module", autouse=True)
def _patient_caches() -> Iterator[None]:
    """A machine may stand still: only where a test names a time-out is a cache impatient."""
    with patient_caches():
        yield
