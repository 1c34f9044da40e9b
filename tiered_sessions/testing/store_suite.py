"""What every `SessionStore` has to pass."""

from __future__ import annotations

from .store_expiry import ExpiryRules
from .store_reads import ReadRules
from .store_writes import AppendRules, CreateRules, DeleteRules


class StoreSuite(CreateRules, AppendRules, DeleteRules, ReadRules, ExpiryRules):
    """Each outcome that store/base.py promises, alone and with several writers at once.

    Subclass it with a fixture `store`: a prepared store, which the suite may fill.
    """
