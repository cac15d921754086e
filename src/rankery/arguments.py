"""Arguments of public functions, held against the types that their signatures name.

    @checked
    def evaluate(models: Paths = (), *, seed: int = 42): ...

    evaluate(seed="1")  ->  InputError: seed is '1'; expected an integer

Contract: an argument of another kind is one InputError with all of them, in Python's words, before the function runs; numbers of
numpy and any collection count as what they stand for. Elements of collections that are no sequence (generators) are
left to the function. Cost: microseconds a call, and a look at each element of a sequence. Rejected: pydantic's validate_call, which
copies and converts, speaks of its own models, and takes a numpy integer for none.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from rankery.errors import InputError, shown

F = TypeVar("F", bound=Callable[..., Any])
WORDS = {
    "str": "a string", "Path": "a path", "int": "an integer", "float": "a number", "bool": "True or False", "NoneType": "None",
}  # fmt: skip


def checked(function: F) -> F:
    """The function, which raises an InputError for arguments that are not what its signature names."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{function.__name__}: {error}; expected {function.__name__}{_names(signature)}") from None
        types = _types(function)
        problems = [
            f"{name} is {shown(value)}; expected {described(types[name])}"
            for name, value in given.items()
            if name in types and signature.parameters[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            if not fits(value, types[name])
        ]  # fmt: skip
        if problems:
            raise InputError(problems)
        return function(*args, **kwargs)

    return cast(F, call)


@functools.lru_cache(maxsize=64)
def _types(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(str(parameter).partition(':')[0] for parameter in signature.parameters.values())})"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation names."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping)
    if origin is collections.abc.Sequence:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return False
        return not isinstance(value, Sequence) or all(fits(one, inner[0]) for one in value)
    if origin is collections.abc.Callable:
        return callable(value)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not fits(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def described(kind: Any) -> str:
    """An annotation in words: `a string, a path or None`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        words = list(dict.fromkeys(described(one) for one in inner if one is not NoneType))
        words += ["None"] if NoneType in inner else []
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"{len(inner)} values: {', '.join(map(described, inner))}"
    if origin is collections.abc.Sequence:
        return f"a list, each of it {described(inner[0])}"
    if origin is collections.abc.Mapping:
        return "a mapping"
    if origin is collections.abc.Callable:
        return "a function"
    name = getattr(kind, "__name__", str(kind))
    return WORDS.get(name, f"a {name}")
