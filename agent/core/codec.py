# SPDX-License-Identifier: GPL-3.0-or-later
"""Dataclasses to JSON and back, strictly: what comes back equals what went out, or is refused with the place named.

| Python | JSON |
| --- | --- |
| None, bool, int, float, str | the same; a whole number is taken for a float, nothing else is converted |
| Enum | its value |
| dataclass | object, one key a field; a missing one takes the field's default if there is one |
| tuple[X, ...], tuple[X, Y] | array |
| dict or Mapping, keys str or int | object |
| X or None, a union of single values | whichever it is |
| Json, JsonObject | itself |

NaN and infinity are refused both ways, as JSON has no words for them; so is text that UTF-8 cannot hold.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from agent.core.json_types import Json, JsonObject

T = TypeVar("T")


class CodecError(ValueError):
    """A value does not fit: `path` is where, dotted with [n], and empty at the top; `text` says what should be there."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}" if path else text)
        self.path = path
        self.text = text

    def below(self, place: str) -> CodecError:
        """The same error as seen from the value that holds this one at `place`, a key or [n]."""
        if not self.path:
            return CodecError(place, self.text)
        return CodecError(place + self.path if self.path.startswith("[") else f"{place}.{self.path}", self.text)


def to_json(value: object) -> Json:
    """Return the value as JSON.

    Raises:  CodecError for NaN, infinity, and text that UTF-8 cannot hold; TypeError for what is not in the table above, a bug.
    """
    return _encoder(type(value))(value)


def from_json(kind: type[T], document: Json, *, ignore_unknown: bool = False) -> T:
    """Return the value of type `kind` that `to_json` made the document of.

    `ignore_unknown` lets fields pass that this version does not know, for files that a newer agent may have written.

    Raises:  CodecError with the first place that does not fit; TypeError for a type that is not in the table above, a bug.
    """
    try:
        return cast(T, _decoder(kind, ignore_unknown)(document))
    except RecursionError:
        raise CodecError("", "is nested too deep") from None


_Decode = Callable[[Json], object]
_Encode = Callable[[object], Json]
_SCALARS: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "null"}


class _Maker(Protocol):
    """A class seen as what makes its instances."""

    def __call__(self, **values: object) -> object: ...


class _FreeJson:
    """Stands for Json when the types of fields are looked up, as an alias that contains itself cannot be looked up."""


class _FreeJsonObject:
    """As `_FreeJson`, for JsonObject."""


_ALIASES: dict[str, object] = {"Json": _FreeJson, "JsonObject": _FreeJsonObject}


def _readable(text: str) -> str:
    """What somebody else wrote, on one line whatever it holds."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _wrong(wanted: str, value: Json) -> CodecError:
    return CodecError("", f"must be {wanted}, not {_shown(value)}")


def _shown(value: Json) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case str():
            return f'"{_readable(value[:40])}..."' if len(value) > 40 else f'"{_readable(value)}"'
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int() if value.bit_length() > 128:
            return "a huge number"
        case _:
            return repr(value)


# Decoding: one function a type, made once.


_DECODERS: dict[tuple[object, bool], _Decode] = {}


def _decoder(hint: object, lax: bool) -> _Decode:
    made = _DECODERS.get((hint, lax))
    if made is None:
        made = _DECODERS[hint, lax] = _make_decoder(hint, lax)
    return made


def _make_decoder(hint: object, lax: bool) -> _Decode:
    origin, arguments = get_origin(hint), cast(tuple[object, ...], get_args(hint))
    if hint in _SCALARS:
        return _SCALAR_DECODERS[hint]
    if hint is _FreeJson:
        return _decode_json
    if hint is _FreeJsonObject:
        return _decode_json_object
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_decoder(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass_decoder(hint, lax)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array_decoder(_decoder(arguments[0], lax))
    if origin is tuple and arguments:
        return _fixed_decoder([_decoder(argument, lax) for argument in arguments])
    if origin in (dict, Mapping) and arguments[0] in (str, int):
        return _mapping_decoder(arguments[0] is int, _decoder(arguments[1], lax))
    if origin in (Union, types.UnionType):
        return _union_decoder(hint, arguments, lax)
    raise TypeError(f"the codec does not know {hint}")


def _decode_bool(value: Json) -> object:
    if value is True or value is False:
        return value
    raise _wrong("true or false", value)


def _decode_int(value: Json) -> object:
    if type(value) is int:
        return value
    raise _wrong("a whole number", value)


def _decode_float(value: Json) -> object:
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    raise _wrong("a number", value)


def _decode_str(value: Json) -> object:
    if type(value) is not str:
        raise _wrong("a text", value)
    if not value.isascii():
        _must_be_text(value)
    return value


def _decode_none(value: Json) -> object:
    if value is not None:
        raise _wrong("null", value)
    return None


def _must_be_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CodecError("", "holds a character that UTF-8 cannot") from None


_SCALAR_DECODERS: dict[object, _Decode] = {
    bool: _decode_bool,
    int: _decode_int,
    float: _decode_float,
    str: _decode_str,
    types.NoneType: _decode_none,
}


def _decode_json(value: Json) -> Json:
    """A copy of free JSON whose numbers and texts are sound."""
    if isinstance(value, dict):
        return _decode_json_object(value)
    if isinstance(value, list):
        return [_placed(_decode_json, entry, f"[{index}]") for index, entry in enumerate(value)]
    return cast(Json, _SCALAR_DECODERS[type(value)](value))


def _decode_json_object(value: Json) -> JsonObject:
    if not isinstance(value, dict):
        raise _wrong("an object", value)
    return {cast(str, _decode_str(key)): _placed(_decode_json, entry, key) for key, entry in value.items()}


def _placed(decode: Callable[[Json], Json], value: Json, place: str) -> Json:
    try:
        return decode(value)
    except CodecError as error:
        raise error.below(place) from None


def _enum_decoder(kind: type[Enum]) -> _Decode:
    members: dict[object, Enum] = {(type(member.value), member.value): member for member in kind}
    wanted = "one of " + ", ".join(str(member.value) for member in kind)

    def decode(value: Json) -> object:
        member = members.get((type(value), value)) if isinstance(value, str | int) else None
        if member is None:
            raise _wrong(wanted, value)
        return member

    return decode


def _dataclass_decoder(kind: type, lax: bool) -> _Decode:
    hints: dict[str, object] = get_type_hints(kind, localns=_ALIASES)
    decoders = {item.name: _decoder(hints[item.name], lax) for item in fields(kind)}
    required = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    make = cast(_Maker, kind)

    def decode(value: Json) -> object:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        found: dict[str, object] = {}
        for key, entry in value.items():
            known = decoders.get(key)
            if known is None:
                if lax:
                    continue
                raise CodecError(_readable(key), "is not a field of this version")
            try:
                found[key] = known(entry)
            except CodecError as error:
                raise error.below(key) from None
        for name in required:
            if name not in found:
                raise CodecError(name, "is missing")
        return make(**found)

    return decode


def _array_decoder(decode_entry: _Decode) -> _Decode:
    def decode(value: Json) -> object:
        if not isinstance(value, list):
            raise _wrong("an array", value)
        found: list[object] = []
        try:
            for entry in value:
                found.append(decode_entry(entry))
        except CodecError as error:
            raise error.below(f"[{len(found)}]") from None
        return tuple(found)

    return decode


def _fixed_decoder(decoders: list[_Decode]) -> _Decode:
    def decode(value: Json) -> object:
        if not isinstance(value, list) or len(value) != len(decoders):
            raise _wrong(f"an array of {len(decoders)}", value)
        found: list[object] = []
        try:
            for one, entry in zip(decoders, value, strict=True):
                found.append(one(entry))
        except CodecError as error:
            raise error.below(f"[{len(found)}]") from None
        return tuple(found)

    return decode


def _mapping_decoder(has_int_keys: bool, decode_entry: _Decode) -> _Decode:
    def decode(value: Json) -> object:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        found: dict[object, object] = {}
        for key, entry in value.items():
            try:
                found[_int_key(key) if has_int_keys else _decode_str(key)] = decode_entry(entry)
            except CodecError as error:
                raise error.below(key) from None
        return found

    return decode


def _int_key(key: str) -> int:
    number = int(key) if len(key) <= 20 and key.isascii() and key.removeprefix("-").isdigit() else None
    if number is None or str(number) != key:
        raise _wrong("a whole number", key)
    return number


def _union_decoder(hint: object, members: tuple[object, ...], lax: bool) -> _Decode:
    rest = [member for member in members if member is not types.NoneType]
    if len(rest) == 1:
        return _optional_decoder(_decoder(rest[0], lax))
    if not all(member in _SCALARS for member in members):
        raise TypeError(f"the codec does not know {hint}")
    decoders = {member: _SCALAR_DECODERS[member] for member in members}
    wanted = " or ".join(_SCALARS[member] for member in members)

    def decode(value: Json) -> object:
        one = decoders.get(type(value))
        if one is None and type(value) is int:
            one = decoders.get(float)
        if one is None:
            raise _wrong(wanted, value)
        return one(value)

    return decode


def _optional_decoder(decode_one: _Decode) -> _Decode:
    def decode(value: Json) -> object:
        return None if value is None else decode_one(value)

    return decode


# Encoding: by what the value is, whatever the field's type says.


_ENCODERS: dict[type, _Encode] = {}


def _encoder(kind: type) -> _Encode:
    made = _ENCODERS.get(kind)
    if made is None:
        made = _ENCODERS[kind] = _make_encoder(kind)
    return made


def _make_encoder(kind: type) -> _Encode:
    if kind in (bool, int, types.NoneType):
        return _encode_plain
    if issubclass(kind, Enum):
        return _encode_enum
    if kind is float:
        return _encode_float
    if kind is str:
        return _encode_str
    if kind in (tuple, list):
        return _encode_array
    if issubclass(kind, Mapping):
        return _encode_mapping
    if is_dataclass(kind):
        return _dataclass_encoder(kind)
    raise TypeError(f"the codec does not know {kind}")


def _encode_plain(value: object) -> Json:
    return cast(Json, value)


def _encode_enum(value: object) -> Json:
    return cast(Json, cast(Enum, value).value)


def _encode_float(value: object) -> Json:
    number = cast(float, value)
    if not math.isfinite(number):
        raise CodecError("", f"is {number!r}, which JSON cannot say")
    return number


def _encode_str(value: object) -> Json:
    text = cast(str, value)
    if not text.isascii():
        _must_be_text(text)
    return text


def _encode_array(value: object) -> Json:
    found: list[Json] = []
    try:
        for entry in cast(tuple[object, ...], value):
            found.append(_encoder(type(entry))(entry))
    except CodecError as error:
        raise error.below(f"[{len(found)}]") from None
    return found


def _encode_mapping(value: object) -> Json:
    found: JsonObject = {}
    for key, entry in cast(Mapping[object, object], value).items():
        if type(key) not in (str, int):
            raise TypeError(f"the codec does not know keys as {key!r}")
        try:
            found[str(key)] = _encoder(type(entry))(entry)
        except CodecError as error:
            raise error.below(str(key)) from None
    return found


def _dataclass_encoder(kind: type) -> _Encode:
    names = [item.name for item in fields(kind)]

    def encode(value: object) -> Json:
        found: JsonObject = {}
        for name in names:
            entry: object = getattr(value, name)
            try:
                found[name] = _encoder(type(entry))(entry)
            except CodecError as error:
                raise error.below(name) from None
        return found

    return encode
