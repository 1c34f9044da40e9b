"""The states of a list: as each session's own read, with nothing in common between them."""

from __future__ import annotations

from tiered_sessions.conversions import whole_state, whole_states
from tiered_sessions.records import Content, SessionKey, Snapshot, Tag

TAG = Tag(1, 0, 2, 3)


def _listed(session: str, state: bytes, user: bytes | None, app: bytes | None) -> Snapshot:
    shared = [None if scope is None else Content(TAG, scope) for scope in (user, app)]
    return Snapshot(SessionKey("app", "user", session), Content(TAG, state, (), False), *shared)


def test_each_state_is_what_its_session_alone_reads() -> None:
    odd = b'{"n":NaN,"deep":{"l":[1,2.5,null,true,123456789012345678901234567890]},"s":"\\ud800"}'
    listed = [
        _listed("both", b'{"a":1}', odd, b'{"x":[1]}'),
        _listed("both again", b'{"user:s":"hidden"}', odd, b'{"x":[1]}'),
        _listed("flat", b'{"b":{"c":2}}', b'{"y":1}', b"{}"),
        _listed("no rows", b"[]", None, None),
        _listed("no user", b"{}", None, b'{"x":[1]}'),
        _listed("no object", b"{}", b"[1]", b'{"x":[1]}'),
    ]
    states = list(whole_states(listed))
    assert [repr(state) for state in states] == [repr(whole_state(one)) for one in listed]


def test_no_value_is_shared() -> None:
    listed = [_listed(name, b'{"a":[]}', b'{"seats":["aisle"]}', b'{"x":{"y":[1]}}') for name in "sto"]
    first, second, third = whole_states(listed)
    first["user:seats"].append("window")
    first["app:x"]["y"].clear()
    first["a"].append(1)
    first["user:new"] = 1
    assert second == third == {"a": [], "user:seats": ["aisle"], "app:x": {"y": [1]}}
    assert whole_state(listed[0]) == second
