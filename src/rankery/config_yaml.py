"""YAML as configurations are written in it: 5e-5 is a number, no and on are words, and every key has a line.

Contract: what `Dumper` writes, `Loader` and other YAML readers read back to the same values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rankery.errors import InputError


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars where 1.1 surprises: 5e-5 is a number; no, on and 2024-01-01 are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in SafeLoader, whose conversions of tagged scalars (`!!float x`) raise whatever Python does, without a line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` and others read back: quotes words that either would take for something else."""


for kind in (Loader, Dumper):
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, `file:line` of each key) of a YAML file that holds one mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a YAML file such as config/training_bert.yaml"
        ) from None
    try:
        node = yaml.compose(text, Loader)
        problems = [f"{path}:{line}: {key} is set twice; keep one" for line, key in set_twice(node)]
        values = {} if problems else yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: is not YAML: {' '.join(str(error).split())}") from None
    if problems:
        raise InputError(problems)
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: holds no keys; expected lines of the form key: value")
    places = {key.value: f"{path}:{key.start_mark.line + 1}" for key, _ in node.value}
    return values, places


def set_twice(node: yaml.Node | None) -> list[tuple[int, str]]:
    """(line, key) of what any mapping of a text has twice, of which YAML readers take the last in silence."""
    found: list[tuple[int, str]] = []
    nodes, seen = [node], set[int]()  # a node may be there often, by aliases
    while nodes:
        one = nodes.pop()
        if one is None or id(one) in seen or isinstance(one, yaml.ScalarNode):
            continue
        seen.add(id(one))
        if isinstance(one, yaml.SequenceNode):
            nodes += one.value
            continue
        keys = set[str]()
        for key, value in one.value:
            if isinstance(key, yaml.ScalarNode):
                found += [(key.start_mark.line + 1, key.value)] if key.value in keys else []
                keys.add(key.value)
            nodes.append(value)
    return sorted(found)
