"""What is raised in a handler that takes longer than ``timeouts.request``."""

from __future__ import annotations


class RequestTimeout(Exception):
    """The application call has taken longer than ``timeouts.request``.

    Raised between two bytecodes of the handler where ``timeouts.request_action`` is "raise"; the
    client has been answered 504 by then. An Exception, so that a framework ends the request as it
    ends any that fails, and gives back what the request holds.
    """

    def __init__(self, message: str = "the request took longer than timeouts.request") -> None:
        super().__init__(message)
