# SPDX-License-Identifier: GPL-3.0-or-later
"""The validator is held against the package `jsonschema`, over random schemas and documents."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_schema import SchemaError, check_schema, problems, same

SCHEMAS = sorted((Path(__file__).resolve().parents[4] / "roles/config_restore/files/schemas").glob("*.json"))
NAMES = ("a", "b", "port", "x/y", "~")
SCALARS: tuple[Any, ...] = (None, True, False, 0, 1, 1.0, -3, 2.5, 1e300, "", "a", "abc", "3000", "ß")


def document(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.random()
    if depth and kind < 0.35:
        return {rng.choice(NAMES): document(rng, depth - 1) for _ in range(rng.randrange(4))}
    if depth and kind < 0.5:
        return [document(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice(SCALARS)


def schema(rng: random.Random, depth: int = 3) -> Any:
    if rng.random() < 0.08:
        return rng.random() < 0.5
    made: dict[str, Any] = {}
    kinds = ["object", "array", "string", "number", "integer", "boolean", "null"]
    if rng.random() < 0.5:
        made["type"] = rng.choice(kinds) if rng.random() < 0.6 else rng.sample(kinds, 2)
    if rng.random() < 0.3:
        made["required"] = rng.sample(NAMES, rng.randrange(3))
    if depth and rng.random() < 0.6:
        made["properties"] = {name: schema(rng, depth - 1) for name in rng.sample(NAMES, rng.randrange(1, 4))}
    if depth and rng.random() < 0.4:
        made["additionalProperties"] = schema(rng, depth - 1)
    if depth and rng.random() < 0.4:
        made["items"] = schema(rng, depth - 1)
    if rng.random() < 0.1:
        made["enum"] = [document(rng, 1) for _ in range(3)]
    if rng.random() < 0.1:
        made["const"] = document(rng, 1)
    if rng.random() < 0.2:
        made["pattern"] = rng.choice(["^a", "b", "^[0-9]+$", "^$"])
    if rng.random() < 0.2:
        made["minimum"] = rng.choice([0, 1, 2.5])
    if rng.random() < 0.2:
        made["maximum"] = rng.choice([0, 1, 2.5])
    return made


@pytest.mark.parametrize("seed", range(20))
def test_as_the_real_validator(seed: int) -> None:
    rng = random.Random(seed)
    told = {True: 0, False: 0}
    for _ in range(150):
        rules, value = schema(rng), document(rng)
        check_schema(rules)
        real = {"/" + "/".join(map(str, error.path)) for error in jsonschema.Draft202012Validator(rules).iter_errors(value)}
        ours = problems(value, rules)
        assert bool(ours) == bool(real), (rules, value, ours, real)
        told[bool(real)] += 1
    assert min(told.values()) > 10, "the random documents prove nothing"


def test_the_places_and_no_value_of_the_document() -> None:
    rules = {
        "type": "object",
        "required": ["gone"],
        "additionalProperties": False,
        "properties": {"key": {"type": "string", "pattern": "^x"}, "n": {"maximum": 3}, "l": {"items": {"const": 1}}, "e": {"enum": [1, 2]}},
    }
    found = problems({"key": "CANARY-SECRET", "n": 4, "l": [1, True], "e": 7, "other": "CANARY-SECRET"}, rules)
    assert dict(found) == {
        "/gone": "is missing",
        "/key": "does not match ^x",
        "/n": "is above 3",
        "/l/1": "is not 1",
        "/e": "is none of 1, 2",
        "/other": "must not be there",
    }
    assert "CANARY" not in json.dumps(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"oneOf": []},
        {"type": "text"},
        {"required": "a"},
        {"enum": []},
        {"minimum": "1"},
        {"pattern": "("},
        {"properties": {"a": {"maxLength": 3}}},
        {"items": {"format": "uri"}},
        [],
        {"properties": 1},
    ],
)
def test_what_is_not_understood_is_refused(wrong: Any) -> None:
    with pytest.raises(SchemaError):
        check_schema(wrong)


def test_true_is_not_one() -> None:
    assert same(1, 1.0) and same({"a": [1]}, {"a": [1.0]})
    assert not same(True, 1) and not same([True], [1]) and not same({"a": 1}, {"b": 1}) and not same([1], [1, 1])


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_the_schemas_of_the_guide_are_understood(path: Path) -> None:
    rules = json.loads(path.read_text())
    check_schema(rules)
    jsonschema.Draft202012Validator.check_schema(rules)
