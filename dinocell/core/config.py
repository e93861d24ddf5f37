"""Recipes: a YAML file plus `key=value` arguments become one frozen, validated dataclass.

The only module that imports OmegaConf. A recipe may start from another one with `extends: other.yaml` (relative to
itself); its own keys win. Every problem is one line that names the key, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinocell.core.errors import ConfigError, first_line
from dinocell.core.fields import REQUIRED, SettingError

T = TypeVar("T")
EXTENDS = "extends"


def load(
    cls: type[T],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> T:
    """Build a config from an optional recipe file and `key=value` overrides.

    Args:
        base: nested values that the recipe and the overrides win over.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown (the nearest is named), a value has the wrong
            type, a required field is unset, or the dataclass itself refuses a value.
    """
    merged: dict[str, Any] = read_recipe(path) if path is not None else {}
    origin = str(path) if path is not None else "command line"
    _check_keys(cls, merged, origin)
    merged = _deep_merge(base or {}, merged)
    for override in overrides:
        parsed = _parse_override(override)
        _check_keys(cls, parsed, f"argument {override!r}")
        merged = _deep_merge(merged, parsed)
    return from_dict(cls, merged, origin)


def from_dict(cls: type[T], mapping: Mapping[str, Any], origin: str = "config") -> T:
    """Build a config from a plain nested mapping; the same checks and errors as `load`."""
    _check_keys(cls, mapping, origin)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(_wrap_scalars(cls, mapping)))
        _check_required(cls, merged, origin)
        return _build(cls, merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from error


def _build(cls: type[T], node: Any) -> T:
    """Make the dataclass, its groups first; what a group refuses is named with the group."""
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, cls)):
        value = node[item.name]
        if dataclasses.is_dataclass(hints[item.name]):
            try:
                values[item.name] = _build(typing.cast(type, hints[item.name]), value)
            except SettingError as error:
                raise error.within(item.name) from None
        else:
            values[item.name] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as a nested dict of plain YAML values (tuples become lists)."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings, such as `to_dict` gives, as `section.name` → value."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def default_values(cls: type) -> dict[str, Any]:
    """Return every setting's default by its dotted name; `???` where the user must give one."""
    return flatten(typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cls))))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML; passing it back through `load` gives an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe, following `extends`."""
    return _read_recipe(Path(path), seen=())


def _read_recipe(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"recipe {str(path)!r} does not exist{_nearest_file(path)}")
    if path.resolve() in seen:
        raise ConfigError(f"recipe {str(path)!r} extends itself through {' → '.join(str(p) for p in seen)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} is not valid YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {str(path)!r} must be a mapping of keys, not {type(content).__name__}")
    parent = content.pop(EXTENDS, None)
    if parent is None:
        return content
    return _deep_merge(_read_recipe(path.parent / str(parent), (*seen, path.resolve())), content)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML alone reads `1e-4` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key or key.startswith("-"):
        raise ConfigError(f"argument {text!r} is not understood; write key=value, for example seed=1")
    try:
        parsed: Any = yaml.load(value, Loader=_Loader) if value else None
    except yaml.YAMLError:
        parsed = value  # a path or pattern that happens to look like broken YAML is meant as text
    nested: Any = parsed
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def _deep_merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = _deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _check_keys(cls: type, mapping: Mapping[str, Any], origin: str) -> None:
    problems = list(_key_problems(cls, mapping, "", dict(leaves(cls))))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))


def _key_problems(cls: type, mapping: Mapping[str, Any], prefix: str, known: Mapping[str, Any]) -> Iterator[str]:
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    for key, value in mapping.items():
        full = f"{prefix}{key}"
        if key not in names:
            for leaf in _flat_names(full, value):
                yield f"unknown key {leaf!r}{_nearest_key(leaf, known)}"
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                yield from _key_problems(typing.cast(type, hints[key]), value, f"{full}.", known)
            else:
                inner = ", ".join(f"{full}.{f.name}" for f in dataclasses.fields(typing.cast(type, hints[key])))
                yield f"{full!r} is a group of settings, not one value ({value!r}); set {inner}"


def _flat_names(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat_names(f"{name}.{key}", inner)
    else:
        yield name


def _nearest_key(full: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(full, known, n=1, cutoff=0.5)
    if not close:  # `lr` for `train.lr`: the right name without its group
        tail = full.rsplit(".", 1)[-1]
        tails = {name.rsplit(".", 1)[-1]: name for name in known}
        close = [tails[t] for t in difflib.get_close_matches(tail, tails, n=1, cutoff=0.6)]
    return f"; did you mean {close[0]!r}?" if close else "; --help lists every key"


def _nearest_file(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {str(folder / close[0])!r}?"
    return f"; {str(folder)!r} holds {', '.join(sorted(names))}" if names else "; give the path of a YAML file"


def _check_required(cls: type, merged: Any, origin: str) -> None:
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        docs = dict(leaves(cls))
        told = "; ".join(f"{name!r} is required ({docs[name].metadata['doc']}): give {name}=…" for name in missing)
        raise ConfigError(f"{origin}: {told}")


def _wrap_scalars(cls: type, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A single value given for a list field is a list of one: `data.root=folder`."""
    hints = get_type_hints(cls)
    wrapped: dict[str, Any] = {}
    for key, value in mapping.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            wrapped[key] = _wrap_scalars(typing.cast(type, hint), value)
        elif get_origin(hint) in (tuple, list) and value is not None:
            items = list(value) if isinstance(value, (list, tuple)) else [value]
            _check_items(key, hint, items)
            wrapped[key] = items
        else:
            wrapped[key] = list(value) if isinstance(value, tuple) else value
    return wrapped


def _check_items(key: str, hint: Any, items: list[Any]) -> None:
    """Refuse mappings in a list of plain values: YAML reads `[a:, b]` and `[a: b]` as such."""
    mappings_wanted = any(isinstance(inner, type) and issubclass(inner, Mapping) for inner in get_args(hint))
    for item in items:
        if isinstance(item, Mapping) and not mappings_wanted:
            raise ConfigError(
                f"{key}: must be a {type_name(hint)}, but {dict(item)} is a mapping; put text with a colon in quotes"
            )


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    return f"{key}: {first_line(error)}" if key else first_line(error)


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting by its dotted name, with its field: `metadata` contains `doc` and `unit`."""
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def type_name(hint: Any) -> str:
    """A type as a user reads it: `a | b` for a choice, `number or null` for an optional one."""
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in get_args(hint))
    if get_origin(hint) in (tuple, list):
        inner = [type_name(a) for a in get_args(hint) if a is not Ellipsis]
        return (
            f"list of {inner[0]}" if get_origin(hint) is list or Ellipsis in get_args(hint) else f"[{', '.join(inner)}]"
        )
    if get_origin(hint) is dict:
        return "mapping"
    return {"int": "integer", "float": "number", "str": "text", "bool": "true | false"}.get(
        getattr(hint, "__name__", ""), str(hint)
    )


def describe(cls: type) -> str:
    """Describe every field in one paragraph: type, bounds, default, unit and meaning; advanced settings come last."""
    everyday: list[str] = []
    advanced: list[str] = []
    for name, item in leaves(cls):
        (advanced if item.metadata.get("advanced") else everyday).append(_paragraph(cls, name, item))
    return "\n".join([*everyday, *(["", "Advanced:", *advanced] if advanced else [])])


def _paragraph(cls: type, name: str, item: dataclasses.Field) -> str:
    hint: Any = cls
    for part in name.split("."):
        hint = get_type_hints(hint)[part]
    default = item.default if item.default is not dataclasses.MISSING else _factory_default(item)
    shown = "required" if default == REQUIRED else f"default {_show(default)}"
    bounds, unit = item.metadata.get("bounds"), item.metadata.get("unit")
    kind = " | ".join(map(str, item.metadata.get("one_of", ()))) or type_name(hint)
    kind += f", {bounds.short()}" if bounds else ""
    only = f" (with {' or '.join(item.metadata['applies_to'])})" if item.metadata.get("applies_to") else ""
    return f"  {name}  ({kind}; {shown}{f' {unit}' if unit else ''})\n      {item.metadata.get('doc', '')}{only}"


def _factory_default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
