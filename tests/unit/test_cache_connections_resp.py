"""The wire format: our own reader and the one in use give what was encoded, however it is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from redis.asyncio.connection import Connection
from redis.exceptions import InvalidResponse, MovedError, NoScriptError, ReadOnlyError, ResponseError

from tests.wire import RedisReader
from tiered_sessions.cache.resp import MISSING, PUSH, Push, PythonReader, Reader, new_reader, pack

READERS: list[tuple[Callable[[], Reader], type]] = [(PythonReader, Push), (new_reader, PUSH)]

text = st.binary(max_size=40)
line = st.binary(max_size=10).filter(lambda value: b"\r" not in value and b"\n" not in value)
scalars = st.one_of(
    text.map(lambda value: (b"$%d\r\n%b\r\n" % (len(value), value), value)),
    line.map(lambda value: (b"+%b\r\n" % value, value)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: (b":%d\r\n" % value, value)),
    st.booleans().map(lambda value: (b"#%b\r\n" % (b"t" if value else b"f"), value)),
    st.floats(allow_nan=False, allow_infinity=False).map(
        lambda value: (b",%b\r\n" % repr(value).encode(), value)
    ),
    st.sampled_from([(b"_\r\n", None), (b"$-1\r\n", None), (b"*-1\r\n", None), (b"*0\r\n", [])]),
    st.sampled_from([(b"%0\r\n", {}), (b"=7\r\ntxt:abc\r\n", b"abc")]),
)


def several(items: list[tuple[bytes, Any]]) -> tuple[bytes, Any]:
    return b"*%d\r\n" % len(items) + b"".join(wire for wire, _ in items), [value for _, value in items]


def mapping(items: dict[bytes, tuple[bytes, Any]]) -> tuple[bytes, Any]:
    wire = b"".join(b"$%d\r\n%b\r\n%b" % (len(key), key, value) for key, (value, _) in items.items())
    return b"%%%d\r\n" % len(items) + wire, {key: value for key, (_, value) in items.items()}


replies = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(several), st.dictionaries(text, inner, max_size=3).map(mapping)
    ),
    max_leaves=12,
)


def read(reader: Reader, pieces: list[bytes]) -> list[Any]:
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.gets()) is not MISSING:
            found.append(reply)
    return found


@given(st.lists(replies, max_size=5), st.data())
def test_replies_are_read_however_they_are_cut(sent: list[tuple[bytes, Any]], data: st.DataObject) -> None:
    wire = b"".join(piece for piece, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    for make, _ in READERS:
        assert read(make(), pieces) == [value for _, value in sent]


@pytest.mark.parametrize(("make", "push"), READERS)
def test_errors_are_those_of_the_client(make: Callable[[], Reader], push: type) -> None:
    wire = b"-NOSCRIPT No matching\r\n-READONLY no\r\n-MOVED 7 a:1\r\n*2\r\n-ERR odd\r\n:1\r\n"
    noscript, readonly, moved, (odd, one) = read(make(), [wire])
    assert isinstance(noscript, NoScriptError)
    assert isinstance(readonly, ReadOnlyError)
    assert isinstance(moved, MovedError)
    assert (moved.slot_id, moved.host, moved.port) == (7, "a", 1)
    assert type(odd) is ResponseError
    assert (str(odd), one) == ("odd", 1)


def test_our_own_reader_knows_what_hiredis_does_not() -> None:
    number, error = read(PythonReader(), [b"(123\r\n!7\r\nERR big\r\n"])
    assert number == 123
    assert type(error) is ResponseError


@pytest.mark.parametrize(("make", "push"), READERS)
def test_a_push_is_told_from_a_reply(make: Callable[[], Reader], push: type) -> None:
    found = read(make(), [b">2\r\n+invalidate\r\n*1\r\n+k\r\n*2\r\n+invalidate\r\n*1\r\n+k\r\n"])
    assert [type(reply) is push for reply in found] == [True, False]
    assert [list(reply) for reply in found] == [[b"invalidate", [b"k"]]] * 2


@pytest.mark.parametrize(("make", "push"), READERS)
@pytest.mark.parametrize("wire", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"*y\r\n", b":z\r\n", b"\r\n"])
def test_nonsense_is_no_reply(make: Callable[[], Reader], push: type, wire: bytes) -> None:
    with pytest.raises(InvalidResponse):
        read(make(), [wire])


words = st.one_of(st.binary(max_size=20), st.text(max_size=20), st.integers(-(2**63), 2**63))


@given(st.lists(st.tuples(st.sampled_from(["GET", "EVALSHA"]), words, words), min_size=1, max_size=4))
def test_commands_are_packed_as_the_client_packs_them(commands: list[tuple[str | bytes | int, ...]]) -> None:
    packet = pack(commands)
    assert packet == b"".join(Connection().pack_commands(commands))
    assert len(RedisReader().feed(packet)) == len(commands)
