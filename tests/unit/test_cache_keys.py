"""Key names are fixed, distinct, and lie together where one script may need them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiered_sessions.cache.keys import drain_key, entry_key
from tiered_sessions.records import SessionKey

names = st.text(st.sampled_from("a{}/:%é\ud800 "), max_size=5)
sessions = st.builds(SessionKey, names, names, names)


def test_the_names_are_those_of_the_design() -> None:
    session = SessionKey("my app", "u{1}", "s/:é")
    assert [entry_key("ns", scope) for scope in session.scopes] == [
        "ts2:ns:{my%20app/u%7B1%7D}:s:s%2F%3A%C3%A9",
        "ts2:ns:{my%20app/u%7B1%7D}:u",
        "ts2:ns:{my%20app}:a",
    ]
    assert drain_key("ns") == "ts2:ns:drain"


@given(names, sessions, names, sessions)
def test_two_scopes_never_share_a_key(
    namespace: str, one: SessionKey, other_namespace: str, other: SessionKey
) -> None:
    named = {(namespace, scope): entry_key(namespace, scope) for scope in one.scopes}
    named |= {(other_namespace, scope): entry_key(other_namespace, scope) for scope in other.scopes}
    assert len(set(named.values())) == len(named)


@given(sessions)
def test_a_user_and_its_sessions_share_a_slot(session: SessionKey) -> None:
    tags = [entry_key("n", scope).split("{")[1].split("}")[0] for scope in (session.session, session.user)]
    assert tags[0] == tags[1]
    assert tags[0]
