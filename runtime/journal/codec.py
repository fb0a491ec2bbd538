"""How bodies become bytes and back: JSON that says its version, and refuses what it does not know.

JSON has no bytes, no infinities, no lone surrogates. A value of these is written as a marked dict, and a dict that looks like a
marked one is marked itself, so everything comes back as it went. Whether there is anything to mark is found by one walk over what
a body's types leave open; where there is not, which is nearly always, msgspec does the rest in one call each way.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, cast, get_args

import attrs
import msgspec
import msgspec.inspect

from ropewalk.runtime.errors import InvalidOption, UnknownRecord

__all__ = ["PLAIN", "Codec", "Encoded", "PlainCodec", "StructCodec", "Upgrade"]

MARK = "$ropewalk"
_MARK_IN_JSON = f'"{MARK}"'.encode()

Upgrade: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a record of one version one of the next: from and to its fields as a dict, the record's tag under ``"type"``."""


@attrs.frozen
class Encoded:
    """A body as it is kept: what sort of record it is, the version of its form, and its bytes."""

    tag: str
    version: int
    data: bytes


class Codec(Protocol):
    """Turns bodies into bytes and back."""

    def encode(self, body: Any) -> Encoded:
        """The body as bytes. Raises `InvalidOption` for what cannot be kept; nothing was written then."""
        ...

    def decode(self, kept: Encoded) -> Any:
        """The body that was encoded. Raises `UnknownRecord` for a tag or a version it does not know."""
        ...


class PlainCodec:
    """For bodies of plain JSON values and bytes; reads what any other JSON codec wrote too, as dicts."""

    def encode(self, body: Any) -> Encoded:
        """The body as JSON, tagged with the name of its type."""
        return Encoded(type(body).__name__, 1, _encoded(body, _is_plain, _as_is))

    def decode(self, kept: Encoded) -> Any:
        """The JSON value, whatever its tag and version."""
        return _decoded(kept.data)


PLAIN = PlainCodec()


class StructCodec:
    """For bodies that are tagged `msgspec.Struct` classes.

    :param types: the class, or the union of classes, that bodies are of, each with a tag of its own.
    :param version: the version of their form that is written. It grows when an older Ropewalk would not understand what is written.
    :param upgrades: for each older version that may be found, a pure function that makes a record of it one of the next version.
    """

    def __init__(self, types: Any, version: int = 1, upgrades: Mapping[int, Upgrade] | None = None) -> None:
        self.version = version
        self._upgrades = dict(upgrades or {})
        self._types = types
        self._decode = msgspec.json.Decoder(types).decode
        self._tags: dict[type, str] = {}
        for one in get_args(types) or (types,):
            tag = one.__struct_config__.tag
            if not isinstance(tag, str) or one.__struct_config__.tag_field != "type" or tag in self._tags.values():
                raise InvalidOption(f"a record's class has a tag of its own, as with msgspec.Struct(tag=True), which {one.__name__} has not")
            self._tags[one] = tag
        self._known = frozenset(self._tags.values())

    def encode(self, body: Any) -> Encoded:
        """The body as JSON."""
        tag = self._tags.get(type(body))
        if tag is None:
            raise InvalidOption(f"a record is one of {', '.join(sorted(self._known))}, not {body!r:.200}")
        return Encoded(tag, self.version, _encoded(body, _is_plain_struct, _builtins))

    def decode(self, kept: Encoded) -> Any:
        """The body, upgraded where it is of an older version."""
        version = kept.version
        if version > self.version:
            raise UnknownRecord(f"it is of version {version}, and this Ropewalk reads up to version {self.version}; a newer Ropewalk wrote it, so use that one")
        if version == self.version and kept.tag not in self._known:
            raise UnknownRecord(f"it is a {kept.tag!r}, and this Ropewalk reads {', '.join(sorted(self._known))}")
        try:
            if version == self.version and _MARK_IN_JSON not in kept.data:
                return self._decode(kept.data)
            return msgspec.convert(self._upgraded(_decoded(kept.data), version), self._types, builtin_types=(bytes,))
        except RecursionError:
            raise UnknownRecord("it is nested too deep to be read here") from None
        except msgspec.DecodeError as error:  # ValidationError is one
            raise UnknownRecord(f"it is a {kept.tag!r} of version {version} that has not the form of one: {error}") from None

    def _upgraded(self, fields: Any, version: int) -> Any:
        for older in range(version, self.version):
            upgrade = self._upgrades.get(older)
            if upgrade is None:
                oldest = next(first for first in range(older + 1, self.version + 1) if all(step in self._upgrades for step in range(first, self.version)))
                raise UnknownRecord(f"it is of version {version}, and this Ropewalk reads versions {oldest} to {self.version}")
            fields = upgrade(fields)
        return fields


def _encoded(body: Any, is_plain: Callable[[Any], bool], builtins: Callable[[Any], Any]) -> bytes:
    try:
        if is_plain(body):
            try:
                return msgspec.json.encode(body)
            except UnicodeEncodeError:
                pass  # a lone surrogate, which is marked below
        return msgspec.json.encode(_marked(builtins(body)))
    except RecursionError:
        raise InvalidOption("what is recorded is nested too deep to be kept") from None
    except TypeError as error:
        raise InvalidOption(f"what is recorded consists of text, numbers, true, false, null, bytes, lists and dicts with text as keys: {error}") from None


def _decoded(data: bytes) -> Any:
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise UnknownRecord("it is nested too deep to be read here") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnknownRecord(f"it is no JSON: {error}") from None
    return _unmarked(value) if _MARK_IN_JSON in data else value


def _is_plain(value: Any) -> bool:
    """Whether JSON has all of this, lone surrogates apart."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str or not (type(inner) is str or _is_plain(inner)):
                return False
        return MARK not in value
    if kind is list:
        return all(map(_is_plain, value))
    return kind is float and math.isfinite(value)


def _is_plain_struct(value: Any) -> bool:
    """Whether JSON has all that a struct holds, and the structs in it."""
    for name in _OPEN_FIELDS[type(value)]:
        inner = getattr(value, name)
        if inner is not None and not _is_plain_within(inner):
            return False
    return True


def _is_plain_within(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return _is_plain(value)
    if kind is tuple or kind is list:
        return all(map(_is_plain_within, value))
    return _is_plain_struct(value) if isinstance(value, msgspec.Struct) else _is_plain(value)


class _OpenFields(dict[type, tuple[str, ...]]):
    """For each class of struct, the fields that have to be looked into: by the types of the others, all they hold is text, whole numbers and the like."""

    def __missing__(self, kind: type) -> tuple[str, ...]:
        about = cast(msgspec.inspect.StructType, msgspec.inspect.type_info(kind))
        self[kind] = found = tuple(field.name for field in about.fields if not _is_closed(field.type))
        return found


_OPEN_FIELDS = _OpenFields()


def _is_closed(about: msgspec.inspect.Type) -> bool:
    match about:
        case msgspec.inspect.StrType() | msgspec.inspect.IntType() | msgspec.inspect.BoolType() | msgspec.inspect.NoneType():
            return True
        case msgspec.inspect.UnionType(types=types) | msgspec.inspect.TupleType(item_types=types):
            return all(map(_is_closed, types))
        case msgspec.inspect.VarTupleType(item_type=item) | msgspec.inspect.ListType(item_type=item):
            return _is_closed(item)
        case _:
            return False


def _as_is(value: Any) -> Any:
    return value


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview))


def _mark(what: str, value: Any) -> dict[str, Any]:
    return {MARK: what, "value": value}


def _marked(value: Any) -> Any:
    """Builtin values as ones that JSON has."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if _is_encodable(value) else _mark("text", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode())
    if isinstance(value, float):
        return value if math.isfinite(value) else _mark("float", repr(value))
    if isinstance(value, list | tuple):
        return [_marked(inner) for inner in value]
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{wrong[0]!r:.200} is a key")
        if MARK in value or not all(map(_is_encodable, value)):
            return _mark("dict", [[_marked(key), _marked(inner)] for key, inner in value.items()])
        return {key: _marked(inner) for key, inner in value.items()}
    return _mark("bytes", base64.b64encode(value).decode())


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: _unmarked(inner) for key, inner in value.items()}
    what, inner = value[MARK], value.get("value")
    if what == "dict" and isinstance(inner, list):
        return {_unmarked(key): _unmarked(item) for key, item in inner}
    if isinstance(inner, str):
        if what == "bytes":
            return base64.b64decode(inner)
        if what == "text":
            return base64.b64decode(inner).decode("utf-8", "surrogatepass")
        if what == "float":
            return float(inner)
    raise UnknownRecord(f"it holds a value marked {what!r:.100}, which this Ropewalk does not know")


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
