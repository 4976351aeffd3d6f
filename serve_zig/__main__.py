"""``python -m serve_zig``: the same as the command ``serve-zig``."""

import sys

from serve_zig.cli import main

if __name__ == "__main__":
    sys.exit(main())
