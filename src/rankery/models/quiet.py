"""transformers without a word while it loads something: a new head is a missing weight to it, and a bar is of no use to anybody.

Contract: its verbosity and its bars are settings of the whole process; they are as before once the last of several threads is
done. Rejected: what each thread found before it, which another one may have set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_inside = 0  # threads
_before = (0, False)  # verbosity, and whether bars were shown, when the first came in


@contextmanager
def quiet() -> Iterator[None]:
    """Surrounds what loads."""
    global _inside, _before
    from transformers.utils import logging

    with _lock:
        if not _inside:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                logging.set_verbosity(_before[0])
                if _before[1]:
                    logging.enable_progress_bar()
