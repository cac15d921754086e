"""Work in a thread that ends, so that its process can be forked afterwards.

Contract: torch's matrix products and large copies start a team of OpenMP threads that belongs to the thread which asked for them; a
process that is forked by that thread inherits the team's state without its threads, and its first product waits for ever.
Servers load a model, fork, and score in the children (gunicorn --preload). Cost: a thread. Rejected: torch.set_num_threads(1)
meanwhile, which slows other threads of the process and, with two loads at a time, is not restored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def in_own_thread(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """What a function returns, or raises, called in a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="rankery") as pool:
        return pool.submit(function, *args, **options).result()
