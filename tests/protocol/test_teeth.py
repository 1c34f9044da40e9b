"""The random simulation has teeth: whatever part of the protocol is switched off, it is noticed."""

from __future__ import annotations

import pytest

from tests.protocol.mutations import HITS, MUTATIONS, Mutation, edit
from tiered_sessions.cache.memory import MemoryCache


def _bites(mutation: Mutation, patch: pytest.MonkeyPatch) -> None:
    assert mutation.violations() == [], "with the part"
    with patch.context() as without:
        mutation.off(without)
        found = mutation.violations()
    print(f"{mutation.name:28} {mutation.guards:8} {len(found):4} of {mutation.seeds} runs")
    assert found, "without the part"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_safety_needs(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same seeds and faults nothing is broken with the part, and something without it."""
    _bites(mutation, monkeypatch)


@pytest.mark.parametrize("mutation", HITS, ids=lambda mutation: mutation.name)
def test_what_the_hit_rate_needs(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """After writes that changed nothing every read is a hit; without the part some are not."""
    _bites(mutation, monkeypatch)


def test_an_edit_of_what_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was rewritten must not leave a mutation behind that changes nothing."""
    with pytest.raises(AssertionError, match="does not say"):
        edit(MemoryCache, "drop", "what nobody wrote", "")(monkeypatch)
