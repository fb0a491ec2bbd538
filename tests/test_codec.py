"""How bodies are kept: everything comes back as it went, and what is not known is refused in words."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk import InvalidOption, UnknownRecord
from ropewalk.actors.session.codec import RECORDS
from ropewalk.actors.session.records import Accepted, Added, Begun, Edited, Opened, Said, Settled, Withdrawn
from ropewalk.actors.view import Edit, Entry, Placed
from ropewalk.runtime.journal import Encoded, PlainCodec, StructCodec
from ropewalk.testing import strategies

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())) | st.binary()
KEYS = st.text(st.characters(exclude_categories=()), max_size=5) | st.sampled_from(["$ropewalk", "value"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12)


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types, and a NaN is one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and (one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@given(VALUES)
def test_plain_values_come_back_as_they_went(value: Any) -> None:
    codec = PlainCodec()
    kept = codec.encode(value)

    assert same(codec.decode(kept), value) or has_nan_sign(value)
    assert same(codec.decode(codec.encode(codec.decode(kept))), codec.decode(kept))


def has_nan_sign(value: Any) -> bool:
    """A NaN with a sign loses the sign, which no arithmetic can see."""
    return "nan" in repr(value)


entries = st.builds(Entry, st.integers(1, 99), strategies.messages(), st.none() | st.text("abc", max_size=3))
edits = st.builds(
    Edit,
    strategies.texts(8),
    st.lists(st.integers(1, 99), max_size=3).map(tuple),
    st.lists(st.builds(Placed, st.integers(0, 99), entries), max_size=2).map(tuple),
)
several = st.lists(entries, max_size=3).map(tuple)
ids = st.text("0123456789abcdef", max_size=16)
usages = st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
bodies = st.one_of(
    st.builds(Opened, strategies.texts(8), st.lists(strategies.messages(), max_size=3).map(tuple)),
    st.builds(Accepted, ids, st.lists(strategies.messages(), max_size=2), st.booleans()),
    st.builds(Begun, ids, st.lists(ids, max_size=2).map(tuple), several, st.integers(0, 9), st.booleans()),
    st.builds(Said, entries),
    st.builds(Edited, edits, st.integers(0, 9)),
    st.builds(Added, several),
    st.builds(Settled, ids, ids, st.none() | ids, st.none() | ids, st.integers(0, 9), usages, st.none() | edits, several, several),
    st.builds(Withdrawn, ids, ids),
)


@given(bodies)
def test_records_of_a_session_come_back_as_they_went(body: Any) -> None:
    kept = RECORDS.encode(body)

    assert kept.tag == type(body).__name__
    assert RECORDS.decode(kept) == body


def test_text_alone_is_plain_json() -> None:
    kept = RECORDS.encode(Said(Entry(1, {"role": "user", "content": [{"text": "Hi"}]})))

    assert kept.data == b'{"type":"Said","entry":{"number":1,"message":{"role":"user","content":[{"text":"Hi"}]},"turn_id":null}}'


class First(msgspec.Struct, tag=True):
    text: str


class Second(msgspec.Struct, tag=True):
    texts: list[str]


OLD = StructCodec(First)
NEW = StructCodec(
    First | Second,
    version=3,
    upgrades={1: lambda fields: {**fields, "text": fields["text"] + "!"}, 2: lambda fields: {"type": "Second", "texts": [fields["text"]]}},
)


def test_an_older_record_is_upgraded_step_by_step() -> None:
    assert NEW.decode(OLD.encode(First("a"))) == Second(["a!"])


@pytest.mark.parametrize(
    ("codec", "kept", "text"),
    [
        (OLD, NEW.encode(Second(["a"])), "of version 3, and this Ropewalk reads up to version 1; a newer Ropewalk wrote it"),
        (OLD, Encoded("Third", 1, b'{"type":"Third"}'), "it is a 'Third', and this Ropewalk reads First"),
        (OLD, Encoded("First", 1, b'{"type":"First"}'), "it is a 'First' of version 1 that has not the form of one: Object missing required field `text`"),
        (StructCodec(First, version=3, upgrades={2: lambda fields: fields}), OLD.encode(First("a")), "of version 1, and this Ropewalk reads versions 2 to 3"),
        (PlainCodec(), Encoded("dict", 1, b'{"$ropewalk":"matrix","value":[]}'), "marked 'matrix', which this Ropewalk does not know"),
        (PlainCodec(), Encoded("dict", 1, b"{"), "it is no JSON"),
    ],
)
def test_what_is_not_known_is_refused_in_words(codec: Any, kept: Encoded, text: str) -> None:
    with pytest.raises(UnknownRecord, match=text):
        codec.decode(kept)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(100_000), {1: 2}, {b"a": 1}, object(), {"a": {1, 2}}, First("a")])
def test_what_cannot_be_kept_is_refused_at_the_door(value: Any) -> None:
    with pytest.raises(InvalidOption, match="what is recorded"):
        PlainCodec().encode(value)


def test_a_codec_for_classes_without_tags_is_refused() -> None:
    class Untagged(msgspec.Struct):
        text: str

    with pytest.raises(InvalidOption, match="has a tag of its own"):
        StructCodec(Untagged)
    with pytest.raises(InvalidOption, match="a record is one of First, not"):
        OLD.encode("text")


class Typed(msgspec.Struct, tag=True):
    """Of each sort of field one; `anything` and what holds it can be what JSON has not."""

    name: str
    number: int | None
    pair: tuple[int, str]
    names: list[str]
    share: float
    anything: Any
    several: tuple[Any, ...]
    by_name: dict[str, Any]
    inner: Second | None


@given(
    st.builds(
        Typed,
        st.text(st.characters(exclude_categories=())),
        st.none() | st.integers(),
        st.tuples(st.integers(), KEYS),
        st.lists(KEYS, max_size=3),
        st.just(math.inf) | st.floats(allow_nan=False),
        VALUES,
        st.lists(VALUES, max_size=2).map(tuple),
        st.dictionaries(KEYS, VALUES, max_size=2),
        st.none() | st.builds(Second, st.lists(KEYS, max_size=3)),
    )
)
def test_records_of_any_types_come_back_as_they_went(record: Typed) -> None:
    codec = StructCodec(Typed)

    assert same(parts(codec.decode(codec.encode(record))), parts(record)) or has_nan_sign(record)


def parts(record: Typed) -> list[Any]:
    return [list(part) if isinstance(part, tuple) else part for part in msgspec.structs.astuple(record)]
