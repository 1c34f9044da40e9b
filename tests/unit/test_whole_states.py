"""The states of a list: as each session's own read, with nothing in common between them."""

from __future__ import annotations

import pytest

from tiered_sessions.conversions import whole_state, whole_states
from tiered_sessions.records import Content, Listing, Tag

TAG = Tag(1, 0, 2, 3)


def _listing(app: bytes | None, *rows: tuple[str, bytes | None]) -> Listing:
    """A list of sessions: the state of each, and of its user, whom no other has."""
    users = {f"user {n}": Content(TAG, user) for n, (_, user) in enumerate(rows) if user is not None}
    names = [f"user {n}" for n in range(len(rows))]
    states = [state for state, _ in rows]
    return Listing("app", names, names, [TAG] * len(rows), states, users, app and Content(TAG, app))


def _as_read_alone(listing: Listing) -> None:
    assert list(map(repr, whole_states(listing))) == [repr(whole_state(one)) for one in listing]


def test_each_state_is_what_its_session_alone_reads() -> None:
    odd = b'{"n":NaN,"deep":{"l":[1,2.5,null,true,123456789012345678901234567890]},"s":"\\ud800"}'
    for app in (None, b"{}", b'{"x":[1]}', b"[1]"):
        _as_read_alone(_listing(app))
        _as_read_alone(
            _listing(
                app,
                ('{"a":1}', odd),
                ('{"user:s":"hidden","app:x":0}', odd),
                ('{"b":{"c":2}}', b'{"y":1}'),
                ("{}", None),
                (odd.decode(), b"[1]"),
            )
        )
        _as_read_alone(_listing(app, ('{"a":1}', odd), ("[]", None), ("null", b"{}")))


def test_a_state_that_is_no_object_says_nothing_of_its_neighbours() -> None:
    """As one text they would be two objects and a list: as many as there are sessions, or no JSON at all."""
    _as_read_alone(_listing(None, ('[{"a":1}]', None), ('{"b":2}', None), ("3", None)))
    for broken in (('[{"a":1}', '{"b":2}]', "{},{}"), ('{"a":1}', "{},{}", "{}")):
        with pytest.raises(ValueError, match=r"EOF|Extra|Expecting"):
            whole_states(_listing(None, *((state, None) for state in broken)))


def test_no_value_is_shared() -> None:
    user, app = Content(TAG, b'{"seats":["aisle"]}'), Content(TAG, b'{"x":{"y":[1]},"z":[[],{}]}')
    listing = Listing("app", ["u"] * 3, list("sto"), [TAG] * 3, ['{"a":[]}'] * 3, {"u": user}, app)
    first, second, third = whole_states(listing)
    first["user:seats"].append("window")
    first["app:x"]["y"].clear()
    first["app:z"][0].append(1)
    first["a"].append(1)
    first["user:new"] = 1
    expected = {"a": [], "user:seats": ["aisle"], "app:x": {"y": [1]}, "app:z": [[], {}]}
    assert second == third == expected
    assert whole_state(next(iter(listing))) == second
