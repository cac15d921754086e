"""The one exception that users meet for bad input: every problem found, one a line; and the one warning.

A `ValueError`, so that callers need not know rankery to catch it. Each problem says where (file and line), what was
got, what was expected and how to mend it. The alternative, raising at the first problem, makes people fix their
data one run at a time.

Contract: a message never carries a data set. Whoever shows a value shows it by `shown`, cut to SHOWN_CHARACTERS; whatever gets
past that, the text of another library's error say, is cut here, and so are characters that a terminal would obey. Rejected: a cut
at each place that raises, one of which is always forgotten.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from numbers import Integral
from typing import Any, TypeVar

T = TypeVar("T")

SHOWN_PROBLEMS = 20
SHOWN_CHARACTERS = 80  # of a value
PROBLEM_CHARACTERS = 1000  # of a problem; its beginning says where, its end what to do
FROM_COMMAND_LINE: ContextVar[bool] = ContextVar("FROM_COMMAND_LINE", default=False)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 2 * SHOWN_CHARACTERS
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 20


def shown(value: object) -> str:
    """A value as messages show it: as Python spells it, cut to SHOWN_CHARACTERS, and as cheap however large it is."""
    if isinstance(value, str | bytes):
        return cut(repr(value[:SHOWN_CHARACTERS]))
    try:
        return cut(_short.repr(value))
    except ValueError:  # an integer of more digits than Python spells
        return "a number of thousands of digits"


def cut(text: str) -> str:
    """A text as messages show it, cut to SHOWN_CHARACTERS."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def option(name: str, in_python: str | None = None) -> str:
    """A parameter as the reader knows it: `min_label`, or `--min-label` on the command line."""
    return f"--{name.replace('_', '-')}" if FROM_COMMAND_LINE.get() else in_python or name


def _bounded(problem: str) -> str:
    """A problem of PROBLEM_CHARACTERS at most, without characters that terminals obey; line breaks stay."""
    if len(problem) > PROBLEM_CHARACTERS:
        problem = f"{problem[: PROBLEM_CHARACTERS - 305]} ... {problem[-300:]}"
    if problem.isprintable():
        return problem
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in problem
    )


class InputError(ValueError):
    """Bad configuration, data or checkpoint; `problems` holds one sentence for each thing that is wrong.

    `shared`: raised on all processes alike, so that the first one says it for all.
    """

    def __init__(self, problems: str | Sequence[str], shared: bool = False):
        self.shared = shared
        self.problems = [*map(_bounded, [problems] if isinstance(problems, str) else problems)]
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
        raise InputError(f"{name} is {shown(value)}; expected a whole number from {least}, or None")
