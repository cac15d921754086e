"""Processes that end when the one that started them does, and a stop by SIGTERM that says what it stopped.

Contract: after `end_with_parent`, a process is killed as soon as its parent is gone, in whatever it computes or waits for: Linux
does it at once, a thread that looks every second does it elsewhere and for what stands between (RANKERY_PARENT). What it wrote is
whole or absent, as after any kill. Rejected: asking it to stop, which a process inside a collective call does not hear.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PARENT = "RANKERY_PARENT"  # the process number of whoever started a launcher, or of the launcher
EVERY_S = 1.0
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_watching = False


class Terminated(BaseException):
    """SIGTERM; the text says what was going on. No Exception: nothing takes it for an error and goes on."""


def end_with_parent() -> None:
    """From now on this process does not outlive the launcher that started it; nothing where no launcher did."""
    global _watching
    if _watching or not (PARENT in os.environ or "TORCHELASTIC_RUN_ID" in os.environ):
        return
    _watching = True
    parent = os.getppid()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    told = os.environ.get(PARENT, "")
    launcher = int(told) if told.isdigit() else parent
    threading.Thread(target=_watch, args=(parent, launcher), daemon=True).start()


def _watch(parent: int, launcher: int) -> None:
    while os.getppid() == parent and _is_alive(launcher):
        time.sleep(EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated inside; not where it is ignored, in launched processes, and off the main thread."""
    mine = threading.current_thread() is threading.main_thread() and "LOCAL_RANK" not in os.environ
    if not mine or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
