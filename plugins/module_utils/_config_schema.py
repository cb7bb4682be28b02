# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""JSON Schema (2020-12, https://json-schema.org/draft/2020-12), as much of it as a configuration needs: servers have no package for it.

A keyword that is not known here is refused: a rule that is silently left out would let everything pass.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_json import step

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_KNOWN = ("type", "required", "properties", "additionalProperties", "enum", "const", "pattern", "minimum", "maximum", "items")
_SAID_ONLY = ("$schema", "$id", "$comment", "title", "description")


class SchemaError(ValueError):
    """The schema itself is wrong, and where."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is(value: object, name: str) -> bool:
    if name == "object":
        return isinstance(value, dict)
    if name == "array":
        return isinstance(value, list)
    if name == "string":
        return isinstance(value, str)
    if name == "boolean":
        return isinstance(value, bool)
    if name == "null":
        return value is None
    return _is_number(value) and (name == "number" or isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def same(one: object, other: object) -> bool:
    """Equal in JSON: true is not 1, but 1.0 is."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(left, right) for left, right in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def check_schema(schema: object, where: str = "the schema") -> None:
    """Raise SchemaError unless every word of it is understood."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise SchemaError(f"{where}: must be an object, true or false")
    for key, value in schema.items():
        if key not in _KNOWN + _SAID_ONLY:
            raise SchemaError(f"{where}: {key} is not understood; understood are {', '.join(_KNOWN)}")
        if key == "type":
            names = value if isinstance(value, list) else [value]
            if not names or any(name not in TYPES for name in names):
                raise SchemaError(f"{where}: type must be of {', '.join(TYPES)}")
        elif key == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise SchemaError(f"{where}: required must be a list of names")
        elif key == "enum" and not (isinstance(value, list) and value):
            raise SchemaError(f"{where}: enum must be a list that is not empty")
        elif key in ("minimum", "maximum") and not _is_number(value):
            raise SchemaError(f"{where}: {key} must be a number")
        elif key == "pattern":
            try:
                re.compile(value)
            except (TypeError, re.error) as exc:
                raise SchemaError(f"{where}: pattern: {exc}") from exc
        elif key == "properties":
            if not isinstance(value, dict):
                raise SchemaError(f"{where}: properties must be an object")
            for name, inner in value.items():
                check_schema(inner, f"{where}/properties/{name}")
        elif key in ("items", "additionalProperties"):
            check_schema(value, f"{where}/{key}")


def problems(value: t.Any, schema: t.Any, pointer: str = "") -> list[tuple[str, str]]:
    """What of the document is not as the schema says: (JSON pointer, what is wrong). No value of the document is quoted."""
    if schema is True:
        return []
    if schema is False:
        return [(pointer, "must not be there")]
    found: list[tuple[str, str]] = []
    names = schema.get("type", [])
    names = names if isinstance(names, list) else [names]
    if names and not any(_is(value, name) for name in names):
        found.append((pointer, f"is not of type {' or '.join(names)}"))
    if "enum" in schema and not any(same(value, item) for item in schema["enum"]):
        found.append((pointer, f"is none of {', '.join(map(repr, schema['enum']))}"))
    if "const" in schema and not same(value, schema["const"]):
        found.append((pointer, f"is not {schema['const']!r}"))
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append((pointer, f"does not match {schema['pattern']}"))
    if _is_number(value):
        if "minimum" in schema and value < schema["minimum"]:
            found.append((pointer, f"is below {schema['minimum']}"))
        if "maximum" in schema and value > schema["maximum"]:
            found.append((pointer, f"is above {schema['maximum']}"))
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [(step(pointer, name), "is missing") for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name in known:
                found += problems(inner, known[name], step(pointer, name))
            elif "additionalProperties" in schema:
                found += problems(inner, schema["additionalProperties"], step(pointer, name))
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            found += problems(inner, schema["items"], step(pointer, number))
    return found
