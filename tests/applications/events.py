"""What a test application tells its test, through files: it works whatever the server does.

The test reads the records with `Server.events`, opens the gates with `Server.open_gate` and ends
what blocks in one call with `Server.blocked`.
"""

import contextlib
import ctypes
import io
import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["SERVE_TEST_FOLDER"])


def record(event: str, **details: Any) -> None:
    """Append one event to the record."""
    line = json.dumps({"event": event, **details}) + "\n"
    descriptor = os.open(FOLDER / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def wait_gate(name: str, seconds: float = 120.0) -> None:
    """Block until the test has opened the gate; by default longer than any test waits."""
    deadline = time.monotonic() + seconds
    while not (FOLDER / f"gate-{name}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the gate {name} stayed shut")
        time.sleep(0.005)


#: More than a FIFO holds: who writes it blocks until the test has read it.
BLOCK_BYTES = 1 << 20


def block(name: str) -> None:
    """Block in one system call, without the GIL, until the test ends it."""
    with _pipe(name) as pipe:
        pipe.write(bytes(BLOCK_BYTES))


def hold_gil(name: str) -> None:
    """Keep the GIL in one call of C, as a careless extension does, until the test ends it."""
    with _pipe(name) as pipe:
        ctypes.PyDLL(None).write(pipe.fileno(), bytes(BLOCK_BYTES), BLOCK_BYTES)


def _pipe(name: str) -> io.FileIO:
    path = FOLDER / f"pipe-{name}"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path)
    # For both: else its opening would block.
    return io.FileIO(os.open(path, os.O_RDWR), "w")
