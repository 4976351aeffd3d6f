"""Long steps of the start are announced: before they begin to hurt, and again while they last."""

from __future__ import annotations

import _thread
import contextlib
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FIRST_SECONDS = 1.0
_AGAIN_SECONDS = 5.0


@contextlib.contextmanager
def announced(what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell ``what`` is going on if the body takes more than a second, and again every 5 s."""
    done = _thread.allocate_lock()
    done.acquire()

    def announce() -> None:
        began = time.monotonic()
        # The application may replace parts of the standard library (gevent) or fork meanwhile;
        # whatever that does to this thread, the start goes on.
        with contextlib.suppress(BaseException):
            if done.acquire(timeout=_FIRST_SECONDS):
                return
            tell(what)
            while not done.acquire(timeout=_AGAIN_SECONDS):
                tell(f"{what}: {time.monotonic() - began:.0f} s so far")

    # Not threading.Thread, whose parts may be replaced while it runs. Without a thread to spare
    # nothing is announced.
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(announce, ())
    try:
        yield
    finally:
        done.release()
