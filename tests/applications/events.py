"""What a test application tells its test, through files: it works whatever the server does.

The test reads the records with `Server.events` and opens the gates with `Server.open_gate`.
"""

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


def wait_gate(name: str, seconds: float = 20.0) -> None:
    """Block until the test has opened the gate."""
    deadline = time.monotonic() + seconds
    while not (FOLDER / f"gate-{name}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the gate {name} stayed shut")
        time.sleep(0.005)
