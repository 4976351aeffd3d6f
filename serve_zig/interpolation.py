"""Environment variables in the string values of serve.toml.

``${NAME}`` is the variable's value, ``${NAME:-default}`` is the default where the variable is
unset or empty (as in a shell), ``$$`` is one dollar sign. Any other dollar sign stands for itself.
What a variable holds is taken as it is: it is not searched for variables again.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_DOLLAR = re.compile(r"\$(?:\$|\{([^}]*)(\}?))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InterpolationError(ValueError):
    """A variable is unset, or what stands in the braces is not a variable's name."""


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Return ``text`` with its variables replaced; raise InterpolationError where that fails."""
    if "$" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if not match[2]:
            raise InterpolationError(
                f'"{match[0]}" has no closing brace; write ${{NAME}} or ${{NAME:-default}}, '
                "and $$ for a dollar sign"
            )
        name, separator, default = match[1].partition(":-")
        if "${" in default:
            raise InterpolationError(
                f'the default of "{match[0]}" holds another variable, which is not supported; '
                "write the default out"
            )
        if _NAME.fullmatch(name) is None:
            raise InterpolationError(
                f'"{match[0]}" does not name an environment variable; write ${{NAME}} or '
                "${NAME:-default}, and $$ for a dollar sign"
            )
        return _lookup(name, default if separator else None, environment)

    return _DOLLAR.sub(replace, text)


def names_in(text: str) -> list[str]:
    """Return the names of the variables that ``expand`` would look up."""
    return [match[1].partition(":-")[0] for match in _DOLLAR.finditer(text) if match[0] != "$$"]


def escape(text: str) -> str:
    """Return ``text`` so that ``expand`` gives it back."""
    return text.replace("$", "$$")


def _lookup(name: str, default: str | None, environment: Mapping[str, str]) -> str:
    value = environment.get(name, "")
    if value == "" and default is not None:
        return default
    if name not in environment:
        raise InterpolationError(
            f"the environment variable {name} is not set; set it, or give a default: "
            f"${{{name}:-default}}"
        )
    # The interpreter passes on bytes that are not UTF-8 as lone surrogates, which neither a
    # TOML file nor a message can hold.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InterpolationError(f"the environment variable {name} is not valid UTF-8")
    return value
