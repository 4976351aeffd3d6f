"""Writes to descriptor 2, past ``sys.stderr``, which an application may have replaced or closed."""

from __future__ import annotations

import os
import select

_STDERR = 2

# A pipe that is ready takes so many bytes at once (PIPE_BUF on Linux).
_PIPE_BYTES = 4096
# How long a record waits for whoever reads it.
_PATIENCE_MS = 1000


def write(record: bytes) -> None:
    """Write what can be written; that nobody reads it is no error."""
    try:
        reader = select.poll()
        reader.register(_STDERR, select.POLLOUT)
        while record:
            if not reader.poll(_PATIENCE_MS):
                return
            record = record[os.write(_STDERR, record[:_PIPE_BYTES]) :]
    except OSError:
        # Nobody reads it any more; that must not stop the server.
        return


def tell(text: str) -> None:
    """Write text for the user of the command line."""
    write(text.encode("utf-8", "backslashreplace"))
