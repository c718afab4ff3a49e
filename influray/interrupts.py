"""How the main thread is stopped: by Ctrl-C and SIGTERM, or by a thread that found that the run cannot go on.

All of them arrive as an exception at the statement being executed, or, in `interrupt_between`, where the
block asks for it. Another thread's reason travels as a SIGTERM of this process to itself.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from influray.protocols import RunStopped


class _Handler:
    """A handler of signals by which `stop` knows that the main thread listens."""

    def __init__(self, handle: Callable[[int, object], None]) -> None:
        self._handle = handle

    def __call__(self, signum: int, frame: object) -> None:
        self._handle(signum, frame)


_reason: RunStopped | None = None  # why `stop` was called, until it is raised


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt while the block runs; only the main thread can, others change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _Handler(_interrupt))
    try:
        yield
    finally:
        restore_sigterm(before)


@contextlib.contextmanager
def interrupt_between() -> Iterator[Callable[[], None]]:
    """Yield a function to call where an interruption can be borne: it raises what was asked for, if anything was.

    SIGINT and SIGTERM wait for it while the block runs, so that no statement is torn in two; the second signal does
    not wait. Outside the main thread, which gets all signals, it never raises.
    """
    asked: list[int] = []

    def check() -> None:
        if asked:
            raise _cause(asked[0])

    def note(signum: int, frame: object) -> None:
        asked.append(signum)
        if len(asked) > 1:
            check()

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    handler = _Handler(note)
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for signum, former in before.items():
            signal.signal(signum, former if former is not None else signal.SIG_DFL)


def stop(reason: RunStopped) -> bool:
    """Have the main thread raise `reason` and return True; False where it does not listen: no block above is open."""
    global _reason
    if not isinstance(signal.getsignal(signal.SIGTERM), _Handler):
        return False
    _reason = _reason or reason
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    return True


def restore_sigterm(handler: Any) -> None:
    """Put back a handler of SIGTERM that `signal.signal` or `getsignal` returned."""
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _interrupt(signum: int, frame: object) -> None:
    raise _cause(signum)


def _cause(signum: int) -> BaseException:
    global _reason
    reason, _reason = _reason, None
    return reason or KeyboardInterrupt(signal.Signals(signum).name)
