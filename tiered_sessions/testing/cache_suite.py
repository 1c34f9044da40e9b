"""What every `SessionCache` has to pass."""

from __future__ import annotations

from .cache_entries import ApplyRules, EntryRules
from .cache_masks import DropRules, LeaseRules, MaskRules
from .cache_sequences import SequenceRules
from .cache_windows import WindowRules


class CacheRules(MaskRules, LeaseRules, DropRules, EntryRules, ApplyRules, WindowRules):
    """Each rule of consistency.md 5.1 by itself: for a cache whose clock cannot be moved.

    Subclass it with a fixture `cache`, one `clock` that returns a `WaitingClock`, and one `limits` with short
    lives. For any other cache use `CacheSuite`.
    """


class CacheSuite(CacheRules, SequenceRules):
    """Each rule of consistency.md 5.1, and equality with `MemoryCache` on sequences drawn by chance.

    Subclass it with a fixture `cache`: an empty cache within the fixture `limits`, without jitter, that lives
    by the fixture `clock` (calling it returns milliseconds).
    """
