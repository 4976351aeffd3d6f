"""What ``app.target`` may say: which module, and which attribute of it is the application."""

from __future__ import annotations

from serve_zig.toml_format import string as quoted

_EXAMPLE = 'allowed is "package.module:callable", or "package.module:create_app()" for a factory'


class TargetError(ValueError):
    """The text is not a target; the message says why and what is allowed."""


class Target:
    """A parsed target: ``attribute`` may be dotted; a factory is called without arguments."""

    __slots__ = ("attribute", "is_factory", "module", "text")

    def __init__(self, text: str, module: str, attribute: str, is_factory: bool) -> None:
        self.text = text
        self.module = module
        self.attribute = attribute
        self.is_factory = is_factory


def parse_target(text: str) -> Target:
    """Return the target that ``text`` spells; raise TargetError."""
    module, colon, attribute = text.partition(":")
    if not colon:
        if module.endswith(".py") or "/" in module:
            raise TargetError(f"found a file name, {quoted(text)}; {_EXAMPLE}")
        raise TargetError(f"found {quoted(text)}, which has no colon; {_EXAMPLE}")
    if "/" in module or "\\" in module or module.endswith(".py"):
        raise TargetError(
            f"found {quoted(text)}, whose module is a file name; write the dotted name, without .py"
        )
    call = attribute.endswith(")")
    name, bracket, arguments = attribute.partition("(")
    if call and bracket and arguments != ")":
        raise TargetError(
            f"found {quoted(text)}, but a factory is called without arguments; write a function "
            "that needs none"
        )
    if not _is_dotted_name(module):
        raise TargetError(
            f"found {quoted(text)}, where {quoted(module)} is not a module name; {_EXAMPLE}"
        )
    if not _is_dotted_name(name) or bool(bracket) != call:
        raise TargetError(
            f"found {quoted(text)}, where {quoted(attribute)} is not a name; {_EXAMPLE}"
        )
    return Target(text, module, name, call)


def parse_hook(text: str) -> Target:
    """Return the callable that ``text`` names, which is called once; raise TargetError."""
    target = parse_target(text)
    if target.is_factory:
        raise TargetError(f"found {quoted(text)}; it is called by the server, so leave out the ()")
    return target


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))
