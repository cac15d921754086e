"""The one exception that users meet for bad input: every problem found, one a line; and the one warning.

A `ValueError`, so that callers need not know rankery to catch it. Each problem says where (file and line), what was
got, what was expected and how to mend it. The alternative, raising at the first problem, makes people fix their
data one run at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

T = TypeVar("T")

SHOWN_PROBLEMS = 20


class InputError(ValueError):
    """Bad configuration, data or checkpoint; `problems` holds one sentence for each thing that is wrong.

    `shared`: raised on all processes alike, so that the first one says it for all.
    """

    def __init__(self, problems: str | Sequence[str], shared: bool = False):
        self.shared = shared
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        shown = self.problems[:SHOWN_PROBLEMS]
        if len(self.problems) > len(shown):
            shown.append(f"... and {len(self.problems) - len(shown)} more")
        super().__init__("\n".join(shown))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[str], bool]]:
        # Worker processes hand it over by pickle: keep the list, not the text.
        return (type(self), (self.problems, self.shared))

    def placed(self, places: Mapping[str, str]) -> InputError:
        """The same; a problem that begins with a key of the configuration has the place of that key before it."""
        keys = [problem.partition(" ")[0].rstrip(":") for problem in self.problems]
        problems = [
            f"{places[key]}: {problem}" if key in places else problem
            for key, problem in zip(keys, self.problems, strict=True)
        ]
        return InputError(problems, self.shared)


class NewHeadWarning(UserWarning):
    """Scores come from a head that nobody has trained, and no seed says that this is wanted."""


def attempt(what: str, function: Callable[[], T], otherwise: T) -> T:
    """What a function returns; where it fails, `otherwise` and a warning: for steps beside a result that must not cost it.

    Args:
        what: a sentence about what is then not there.
        function: the step.
        otherwise: taken in its place.
    """
    try:
        return function()
    except Exception as error:  # whatever it is, the result comes first
        said = " ".join(str(error).split())[:300]
        warnings.warn(f"{what} ({type(error).__name__}: {said})", stacklevel=3)
        return otherwise


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """An argument that may be left out has to be a whole number; numpy's count.

    Raises:
        InputError: it is something else, or too small.
    """
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least):
        raise InputError(f"{name} is {value!r}; expected a whole number from {least}, or None")
