"""The known name that a mistyped one probably meant."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that looks most like ``name``, or None where none does."""
    # Imported here because only a mistake needs it: a start without one stays quick.
    import difflib

    matches = difflib.get_close_matches(name, list(candidates), n=1)
    return matches[0] if matches else None
