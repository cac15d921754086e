"""The command line: parse, call a verb, say what went wrong."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from rankery import __version__
from rankery.errors import FROM_COMMAND_LINE, InputError
from rankery.lifeline import Terminated, end_with_parent, terminable
from rankery.verbs import calibrate, check, compare, demo, distil, evaluate, export, mine, rerank, score, train, tune

STOPPED = 128 + signal.SIGTERM
VERBS = (check, tune, train, compare, evaluate, calibrate, rerank, score, mine, distil, export, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb: 0 when done; else, said on standard error, 1 where the system refuses (a full disk), 2 for bad input, 130 when
    interrupted, 143 when stopped by SIGTERM.
    """
    before = FROM_COMMAND_LINE.set(True)  # messages name options
    try:
        return _main(argv)
    finally:
        FROM_COMMAND_LINE.reset(before)


def _main(argv: Sequence[str] | None) -> int:
    arguments, unknown = _parser().parse_known_args(argv)
    vars(arguments).pop("given_options", None)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(arguments, "overrides"):  # key=value words may stand anywhere, and start with --
        arguments.overrides += unknown
    elif unknown:
        _parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal's encoding lacks stops nothing
    end_with_parent()
    goes_on = getattr(arguments, "goes_on", "")
    try:
        with terminable():
            status = arguments.run(arguments) or 0
        sys.stdout.flush()
        if status == STOPPED:  # the processes that it had started
            print(f"stopped by SIGTERM{goes_on}", file=sys.stderr)
        return status
    except InputError as error:
        _say(error)
        return 2
    except BrokenPipeError:  # the reader of our output has gone: head, say
        _drop_output()
        return 1
    except OSError as error:
        _say(error)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    except Terminated as stop:
        print(f"stopped by SIGTERM{f': {stop}' if stop.args else goes_on}", file=sys.stderr)
        return STOPPED


def _say(error: Exception) -> None:
    """One line for each problem; of an error that all processes share, from the first alone."""
    process = os.environ.get("RANK", "0")
    if process == "0" or not getattr(error, "shared", False):
        who = "" if process == "0" else f"process {process}: "
        for line in str(error).splitlines():
            print(f"error: {who}{line}", file=sys.stderr)


def _drop_output() -> None:
    """What could not be written is not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Exact(argparse.ArgumentParser):
    """Options by their whole names: --out=x may be a key of a training, and `relaunched` looks for --processes."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)
        for name in (None, "store"):
            self.register("action", name, _Once)


class _Once(argparse._StoreAction):
    """An option with one value, or one list of them, that is there once: argparse takes the last of several in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = namespace.__dict__.setdefault("given_options", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is there twice; expected it once")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankery", description="Fine-tune, evaluate and run text rerankers.")
    parser.add_argument("--version", action="version", version=f"rankery {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Exact)
    for verb in VERBS:
        verb.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
