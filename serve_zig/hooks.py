"""``app.startup`` and ``app.shutdown``: callables of the application that run once each."""

from __future__ import annotations

from serve_zig.application import load_hook, run_hook
from serve_zig.target import parse_hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_zig.config import Config


class Hook:
    """The callable that one of the two keys names, or none."""

    def __init__(self, config: Config, path: str) -> None:
        text = config.text(path)
        self._path = path
        self._place = config.place(path)
        self._directory = config.text("app.directory")
        self._target = parse_hook(text) if text else None
        self._function: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self._path}: {self._target.text}" if self._target else self._path

    @property
    def is_there(self) -> bool:
        """Whether the key names a callable."""
        return self._target is not None

    def load(self) -> None:
        """Import it; raise ApplicationError."""
        if self._target is not None:
            self._function = load_hook(self._target, self._directory, self._place)

    def run(self) -> None:
        """Call it, if there is one; raise ApplicationError with its traceback."""
        if self._target is not None and self._function is not None:
            run_hook(self._function, self._target, self._place)
