"""The benchmarks run google-adk in the test's own process: without it each module is one skip."""

from tests.adk.conftest import pytest_pycollect_makemodule

__all__ = ["pytest_pycollect_makemodule"]
