"""``python -m serve_zig``, and the command ``serve-zig``: the owner of the process."""

from __future__ import annotations

import sys

from serve_zig.cli import main
from serve_zig.descriptors import open_standard
from serve_zig.errors import EXIT_FAILED
from serve_zig.process_end import end_soon
from serve_zig.signals import settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def run(program: Callable[[], int] = main) -> NoReturn:
    """Run the command line, and end the process with its exit status."""
    open_standard()
    status = EXIT_FAILED
    try:
        status = program()
    finally:
        end_soon(status)
        settle()
    sys.exit(status)


if __name__ == "__main__":
    run()
