"""The order in which events of other writers are numbered."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..records import EventRecord


def order_foreign(rows: Iterable[EventRecord]) -> list[str]:
    """Orders events without a `seq`, and returns their ids, oldest first.

    By the timestamp inside their JSON, then by id. The timestamp column decides only where the
    JSON holds none: releases of google-adk before 2.13 wrote it in local time.
    """
    return [row.id for row in sorted(rows, key=lambda row: (_seconds(row), row.id))]


def _seconds(row: EventRecord) -> float:
    try:
        # parse_int=float: an integer of thousands of digits elsewhere in the event would raise.
        value = json.loads(row.payload, parse_int=float)["timestamp"]
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    # NaN cannot be ordered.
    return value if isinstance(value, float) and value == value else row.timestamp / 1e6
