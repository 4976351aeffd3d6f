"""Where each thread is: its Python stack, as text for the log and as JSON for /threads.

Everything here needs the GIL, so it speaks of threads that have let it go.
"""

from __future__ import annotations

import sys
import threading

from serve_zig.application_traceback import application_frames, escape_controls, format_stack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import Any


def stack_of(thread_id: int) -> str:
    """Return the stack of one thread, without the server's own frames; empty if it has none."""
    frame = sys._current_frames().get(thread_id)
    return format_stack(frame) if frame is not None else ""


def every_stack() -> list[tuple[str, int, str]]:
    """Return name, id and stack of each thread; the stack of the server's own code is empty."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return sorted(
        (names.get(thread_id, "(not of Python)"), thread_id, format_stack(frame))
        for thread_id, frame in sys._current_frames().items()
    )


def threads_as_json(requests: Mapping[int, Mapping[str, Any]]) -> bytes:
    """Return what /threads answers; ``requests`` are those in progress, by thread id."""
    # Imported here, because a start without an admin listener does not need it.
    import json

    threads = {thread.ident: thread for thread in threading.enumerate()}
    described = [
        _describe(threads.get(thread_id), thread_id, frame, requests.get(thread_id))
        for thread_id, frame in sys._current_frames().items()
    ]
    described.sort(key=lambda one: str(one["name"]))
    return json.dumps({"threads": described}).encode("utf-8") + b"\n"


def _describe(
    thread: threading.Thread | None,
    thread_id: int,
    frame: FrameType,
    request: Mapping[str, Any] | None,
) -> dict[str, Any]:
    frames = application_frames(frame)
    if not frames:
        # What it ran last may be parked, or on its way to the client.
        request = None
    return {
        "name": thread.name if thread is not None else None,
        "id": thread_id,
        "daemon": thread.daemon if thread is not None else None,
        "state": request["phase"] if request is not None else "idle",
        "request": request,
        "stack": [
            {
                "file": entry.filename,
                "line": entry.lineno,
                "function": entry.name,
                "code": escape_controls(entry.line or ""),
            }
            for entry in frames
        ],
    }
