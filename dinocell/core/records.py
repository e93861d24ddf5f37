"""Typed records in JSON: every value is checked against its dataclass, and an error names the key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dinocell.core.errors import ConfigError
from dinocell.core.fields import SettingError

T = TypeVar("T")
OTHER = "other"
"""Field of a record that takes the keys it does not know; they are written back as they were."""


def read_record(cls: type[T], value: object, where: str = "") -> T:
    """Build a dataclass from parsed JSON; null and absent keys take the field's default.

    Args:
        cls: a dataclass, whose fields may be dataclasses, tuples and mappings. With a field `other` it keeps unknown
            keys; without one it refuses them.
        value: the parsed JSON.
        where: dotted name of the value, for errors.

    Raises:
        ConfigError: a key is missing, unknown or of another type, or the dataclass itself refuses a value.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or 'the file'}: must be a mapping, is a {type(value).__name__}")
    hints, prefix = get_type_hints(cls), f"{where}." if where else ""
    known = {field.name: field for field in fields(cast(Any, cls)) if field.name != OTHER}
    given = {k: _typed(hints[k], v, f"{prefix}{k}") for k, v in value.items() if k in known and v is not None}
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name}: is missing")
    unknown = {key: entry for key, entry in value.items() if key not in known}
    if OTHER in hints:
        given[OTHER] = unknown
    elif unknown:
        raise ConfigError(f"unknown key {prefix}{_with_nearest(next(iter(unknown)), known)}")
    try:
        return cls(**given)
    except SettingError as error:
        raise (error.within(where) if where else error) from error


def as_json(value: Any) -> Any:
    """A record as values that `json` writes: mappings, lists, numbers, text; the inverse of `read_record`."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: as_json(getattr(value, field.name)) for field in fields(value) if field.name != OTHER}
        return own | as_json(getattr(value, OTHER, {}))
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def _with_nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name}; did you mean {near[0]}?" if near else name


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value as its type says; ConfigError where it is of another."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and type(None) in inner):
        return value
    if origin in (Union, types.UnionType):
        return _typed(next(choice for choice in inner if choice is not type(None)), value, where)
    if origin is Literal:
        if value not in inner:
            raise ConfigError(f"{where}: unknown {value!r}; known: {', '.join(map(str, inner))}")
        return value
    if is_dataclass(hint):
        return read_record(cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(inner[0], entry, f"{where}[{at}]") for at, entry in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(key): _typed(inner[1], entry, f"{where}.{key}") for key, entry in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false", tuple: "a list"}
    raise ConfigError(f"{where}: must be {words.get(origin or hint, 'a mapping')}, got {value!r:.60}")
