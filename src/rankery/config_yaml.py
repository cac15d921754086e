"""YAML as configurations are written in it: 5e-5 is a number, no, on and 1:30 are words, and every key has a line.

Contract: what `Dumper` writes, `Loader` and other YAML readers read back to the same values. A text means what it says: nothing is
a number of base 8 or 60, a key that stands twice is a problem, at any depth. Reading costs what the text costs: of aliases, which
may stand for a billion values in 445 bytes, only as many values are made as MOST_VALUES. Rejected: refusing aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from rankery.errors import InputError, cut, shown

MOST_VALUES, MOST_BYTES = 10_000, 1 << 20  # of a configuration
SURPRISES = ("bool", "timestamp", "int", "float", "value")  # what YAML 1.1 takes for more than YAML 1.2 does


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars where 1.1 surprises: 5e-5 is a number; no, on, 1:30, 010, 1_000 and 2024-01-01 are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in SURPRISES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in SafeLoader, whose conversions of tagged scalars (`!!float x`) raise whatever Python does, without a line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            problem = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# A zero before other digits is base 8 to some readers and base 10 to others: a word.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` and others read back: quotes words that either would take for something else."""


for kind in (Loader, Dumper):
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, `file:line` of each key) of a YAML file that holds one mapping."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a YAML file such as config/training_bert.yaml"
        ) from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{path}: is larger than {MOST_BYTES >> 20} MiB; expected a YAML file with keys of a training")
    node, values = parse_yaml(text, str(path))
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: holds no keys; expected lines of the form key: value")
    return values, {
        key.value: f"{path}:{key.start_mark.line + 1}" for key, _ in node.value if isinstance(key.value, str)
    }


def parse_yaml(text: str, where: str, lines: bool = True) -> tuple[yaml.Node | None, Any]:
    """(node, value) of a text.

    Raises:
        InputError: it is no YAML, is nested or repeated without end, or sets keys twice; `where` begins each problem,
            with a line behind it where `lines` are known.
    """

    def at(mark: Any) -> str:
        return "" if not lines else f":{mark.line + 1}:" if mark else ":"

    try:
        node = yaml.compose(text, Loader)
        if node is None:
            return None, None
        if (size := _size(node, {})) > MOST_VALUES:
            raise InputError(f"{where}{at(None)} stands for {size:,} values or more; expected {MOST_VALUES:,} at most")
        if twice := sorted(_repeated(node), key=lambda key: key.start_mark.line):
            raise InputError(
                [
                    f"{where}{at(key.start_mark)} {name} is set twice; keep one"
                    if lines
                    else f"{where} sets {name} twice"
                    for key in twice
                    for name in [cut(str(key.value))]
                ]
            )
        loader = Loader("")
        try:
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"{where}{at(mark)} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{where}{at(None)} is nested too deeply; expected lines of the form key: value") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for, aliases counted as often as they are used; more than MOST_VALUES for one inside itself."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is looked at
        below = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        is_scalar = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if is_scalar else 1 + sum(_size(child, known) for child in below)
    return known[id(node)]


def _repeated(node: yaml.Node) -> Iterator[yaml.Node]:
    """Keys that a mapping, or one inside it, has already."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from (key for i, (key, _) in enumerate(node.value) if key.value in keys[:i])
        for _, value in node.value:
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)
