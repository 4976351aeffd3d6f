"""The ways in which the launcher gives up, each with the exit status that the contract gives it.

An error carries finished sentences: what is wrong, where, and the mend. The command line prints
them as they are, so that a user's mistake never ends in a traceback of the launcher.
"""

from __future__ import annotations

from serve_zig.toml_format import printable

EXIT_DRAINED = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_APPLICATION = 3
EXIT_DRAIN_TIMEOUT = 4


class LauncherError(Exception):
    """The server failed: exit status 1. The base of every error that the launcher reports.

    ``problems`` are the messages, one line each: what cannot be printed becomes an escape.
    ``detail`` is printed below them as it stands, for instance the application's own traceback.
    """

    exit_status = EXIT_FAILED

    def __init__(self, *problems: str, detail: str = "") -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__(*self.problems)
        self.detail = detail

    def __str__(self) -> str:
        return "\n".join(self.problems)

    def report(self) -> str:
        """Return the text for stderr, which ends with a newline."""
        lines = "".join(f"serve-zig: error: {problem}\n" for problem in self.problems)
        detail = self.detail
        return lines + detail + ("\n" if detail and not detail.endswith("\n") else "")


class ConfigError(LauncherError):
    """The config or the command line is wrong: exit status 2."""

    exit_status = EXIT_CONFIG


class ApplicationError(LauncherError):
    """The application could not be imported: exit status 3."""

    exit_status = EXIT_APPLICATION


class ListenerError(LauncherError):
    """A listener could not be opened: exit status 1."""


class StartInterruptedError(BaseException):
    """SIGTERM or SIGINT came before the server served.

    Not an Exception, so that an application which catches those while it is imported does not
    swallow the signal.
    """
