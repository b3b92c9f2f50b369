"""Stopping between two steps: SIGTERM and Ctrl-C become requests that a loop answers when its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Turn SIGTERM and Ctrl-C into a request that the loop answers between two steps; only the main thread may listen."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    listen = {number: signal.signal(number, lambda n, _: setattr(stop, "number", n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in listen.items():
            signal.signal(number, handler)


class Stop:
    """Remembers a signal until the loop has saved."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def end(self) -> None:
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)
