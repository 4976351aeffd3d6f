"""The types of serve.toml's values: what each accepts, refuses, and how it is written back.

A kind knows one value at a time; which key has which kind stands in schema.py.
"""

from __future__ import annotations

import re

from serve_zig import toml_format
from serve_zig.addresses import AddressError, TcpAddress, parse_address
from serve_zig.networks import NetworkError, parse_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Value = str | int | float | list[str]
"""A checked value: times in seconds (float), sizes in bytes (int)."""

KIBIBYTE = 1024
MEBIBYTE = 1024**2
GIBIBYTE = 1024**3
TEBIBYTE = 1024**4
SIZE_UNITS = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": KIBIBYTE,
    "MiB": MEBIBYTE,
    "GiB": GIBIBYTE,
    "TiB": TEBIBYTE,
}
SECONDS_MAX = 86_400.0

_SIZE = re.compile(r"([0-9]{1,20}) ?([A-Za-z]+)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_PATH = re.compile(r"/[!-\"$->@-~]*")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


class UnsuitableError(ValueError):
    """A value is of the wrong type or out of range; each message says what was found and allowed.

    A list may have several.
    """

    def __str__(self) -> str:
        return "; ".join(self.args)


def size_text(size: int) -> str:
    """Return a size in bytes with the largest unit of 1024 that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]} {unit}"
    return f"{size} B"


def _each(texts: list[object], parse: Callable[[object], str]) -> list[str]:
    """Return what ``parse`` makes of each; raise UnsuitableError for all that cannot be."""
    found: list[str] = []
    problems: list[str] = []
    for text in texts:
        try:
            one = parse(text)
        except UnsuitableError as error:
            problems += error.args
            continue
        if one in found:
            problems.append(f"{toml_format.string(one)} is given twice; remove one")
        found.append(one)
    if problems:
        raise UnsuitableError(*dict.fromkeys(problems))
    return found


class Kind:
    """A type with its range."""

    name: str
    """What the documents call the type."""

    allowed: str
    """What may be written, as the end of a sentence."""

    def parse(self, value: object) -> Value:
        """Return the checked value; raise UnsuitableError."""
        raise NotImplementedError

    def from_text(self, text: str) -> Value:
        """Return the checked value of a string that came out of environment variables."""
        return self.parse(text)

    def to_toml(self, value: Value) -> str:
        """Return the value as TOML that ``parse`` reads back to the same."""
        raise NotImplementedError

    def unsuitable(self, value: object) -> UnsuitableError:
        """Return the error for a value that is not ``allowed``."""
        return UnsuitableError(f"found {toml_format.describe(value)}; allowed is {self.allowed}")


class Text(Kind):
    """A string; ``check`` may refuse it by raising ValueError with a sentence.

    The empty string is refused unless ``empty`` says that it stands for something; then it is not
    checked.
    """

    name = "string"

    def __init__(
        self, allowed: str, check: Callable[[str], object] | None = None, *, empty: bool = False
    ) -> None:
        self.allowed = allowed
        self._check = check
        self._empty = empty

    def parse(self, value: object) -> str:
        """Return the string."""
        if not isinstance(value, str) or "\0" in value:
            raise self.unsuitable(value)
        if value == "":
            if not self._empty:
                raise self.unsuitable(value)
            return value
        if self._check is not None:
            try:
                self._check(value)
            except ValueError as error:
                raise UnsuitableError(str(error)) from None
        return value

    def to_toml(self, value: Value) -> str:
        """Return a basic string."""
        return toml_format.string(str(value))


class OptionalText(Text):
    """A string that may be empty, for nothing; then it is not shown to ``check``."""

    def parse(self, value: object) -> str:
        """Return the string."""
        return "" if value == "" else super().parse(value)


class Choice(Kind):
    """One of a few words."""

    name = "string"

    def __init__(self, *words: str) -> None:
        self.words = words
        self.allowed = " or ".join(map(toml_format.string, words))

    def parse(self, value: object) -> str:
        """Return the word."""
        if not isinstance(value, str) or value not in self.words:
            raise self.unsuitable(value)
        return value

    def to_toml(self, value: Value) -> str:
        """Return a basic string."""
        return toml_format.string(str(value))


class Boolean(Kind):
    """True or false."""

    name = "boolean"
    allowed = "true or false"

    def parse(self, value: object) -> bool:
        """Return the truth value; a number is none."""
        if not isinstance(value, bool):
            raise self.unsuitable(value)
        return value

    def from_text(self, text: str) -> bool:
        """Return what the text spells as TOML does."""
        if text not in ("true", "false"):
            raise self.unsuitable(text)
        return text == "true"

    def to_toml(self, value: Value) -> str:
        """Return a boolean."""
        return "true" if value else "false"


class Integer(Kind):
    """A whole number from ``least`` to ``most``."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.allowed = f"an integer from {least} to {most}"

    def parse(self, value: object) -> int:
        """Return the number; a boolean is none."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unsuitable(value)
        if not self.least <= value <= self.most:
            raise self.unsuitable(value)
        return value

    def from_text(self, text: str) -> int:
        """Return the number that the text spells in decimal digits."""
        if _INTEGER.fullmatch(text) is None:
            raise self.unsuitable(text)
        return self.parse(int(text))

    def to_toml(self, value: Value) -> str:
        """Return a decimal integer."""
        return str(value)


class Mode(Integer):
    """Permission bits of a file, in octal; 660 without the 0o is out of range, so it is refused."""

    name = "integer (octal)"

    def __init__(self) -> None:
        super().__init__(0, 0o777)
        self.allowed = "an octal integer from 0o000 to 0o777, such as 0o660"

    def from_text(self, text: str) -> int:
        """Return the bits that the text spells in octal digits, with or without the 0o."""
        digits = text.removeprefix("0o")
        if re.fullmatch(r"[0-7]{1,4}", digits) is None:
            raise self.unsuitable(text)
        return self.parse(int(digits, 8))

    def to_toml(self, value: Value) -> str:
        """Return an octal integer."""
        assert isinstance(value, int)
        return f"0o{value:03o}"


class Seconds(Kind):
    """A time in seconds from ``least`` to ``most``: a float, or an integer for short."""

    name = "seconds"

    def __init__(self, least: float, most: float = SECONDS_MAX) -> None:
        self.least = least
        self.most = most
        self.allowed = f"a number of seconds from {least:.10g} to {most:.10g}"

    def parse(self, value: object) -> float:
        """Return the time in seconds; a boolean, inf and nan are none."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.unsuitable(value)
        # A nan compares false with everything, so it fails here too.
        if not self.least <= value <= self.most:
            raise self.unsuitable(value)
        return float(value)

    def from_text(self, text: str) -> float:
        """Return the time that the text spells as a decimal number."""
        if _DECIMAL.fullmatch(text) is None:
            raise self.unsuitable(text)
        return self.parse(float(text))

    def to_toml(self, value: Value) -> str:
        """Return a float."""
        assert isinstance(value, float)
        return toml_format.number(value)


class Ratio(Seconds):
    """A share of all, from 0 to 1."""

    name = "number"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.allowed = "a number from 0 to 1"


class Size(Kind):
    """A number of bytes from ``least`` to ``most``: an integer, or a string with a unit."""

    name = "size"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.allowed = (
            f"a size from {size_text(least)} to {size_text(most)}: an integer of bytes, or a "
            f'string such as "16 KiB" (units {", ".join(SIZE_UNITS)})'
        )

    def parse(self, value: object) -> int:
        """Return the size in bytes."""
        size = value
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            if match is None or match[2] not in SIZE_UNITS:
                raise self.unsuitable(value)
            size = int(match[1]) * SIZE_UNITS[match[2]]
        if isinstance(size, bool) or not isinstance(size, int):
            raise self.unsuitable(value)
        if not self.least <= size <= self.most:
            raise self.unsuitable(value)
        return size

    def from_text(self, text: str) -> int:
        """Return the size in bytes; a text of digits alone counts bytes."""
        return self.parse(int(text) if _INTEGER.fullmatch(text) else text)

    def to_toml(self, value: Value) -> str:
        """Return a string with the largest unit that divides the size; 0 has no unit."""
        assert isinstance(value, int)
        return "0" if value == 0 else toml_format.string(size_text(value))


class _Strings(Kind):
    """A value that is a list of strings."""

    def to_toml(self, value: Value) -> str:
        """Return an array of basic strings."""
        assert isinstance(value, list)
        return toml_format.strings(value)


class Addresses(_Strings):
    """One address or a list of them, none twice."""

    name = "string or list of strings"
    allowed = (
        'one string or a list of strings: "host:port", "[::1]:8000", ":8000", "unix:/path", '
        '"fd://3", "fd://systemd"'
    )

    def parse(self, value: object) -> list[str]:
        """Return the addresses as a list."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise self.unsuitable(value)
        return _each(texts, self._parse_one)

    def _parse_one(self, text: object) -> str:
        if not isinstance(text, str):
            raise UnsuitableError(
                f"found {toml_format.describe(text)} in the list; allowed is {self.allowed}"
            )
        try:
            parse_address(text)
        except AddressError as error:
            raise UnsuitableError(str(error)) from None
        return text


class Networks(_Strings):
    """Any number of addresses, CIDR ranges and the word "unix", none twice."""

    name = "string or list of strings"
    allowed = (
        'one string or a list of strings: addresses, CIDR ranges such as "10.0.0.0/8", or "unix"'
    )

    def parse(self, value: object) -> list[str]:
        """Return the networks as a list, each in its shortest form; commas separate, too."""
        texts = value.split(",") if isinstance(value, str) and value else value
        if not isinstance(texts, list):
            raise self.unsuitable(value)
        return _each(texts, self._parse_one)

    def _parse_one(self, text: object) -> str:
        if not isinstance(text, str):
            raise UnsuitableError(
                f"found {toml_format.describe(text)} in the list; allowed is {self.allowed}"
            )
        try:
            return parse_network(text.strip(" "))
        except NetworkError as error:
            raise UnsuitableError(str(error)) from None

    def from_text(self, text: str) -> list[str]:
        """Return the networks that the text names, separated by commas; none if it is empty."""
        return self.parse(text) if text.strip(" ") else []


class Hosts(_Strings):
    """Any number of host names and addresses, none twice."""

    name = "string or list of strings"
    allowed = (
        "one string or a list of strings: host names and addresses without a port, such as "
        '"app.internal" or "[::1]", or "*" for every host'
    )

    def parse(self, value: object) -> list[str]:
        """Return the hosts as a list, in lower case."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise self.unsuitable(value)
        hosts: list[str] = []
        for text in texts:
            host = text.lower() if isinstance(text, str) else ""
            if host != "*" and not self._is_host(host):
                raise UnsuitableError(
                    f"found {toml_format.describe(text)} in the list; allowed is {self.allowed}"
                )
            if host in hosts:
                raise UnsuitableError(f"{toml_format.string(text)} is given twice; remove one")
            hosts.append(host)
        return hosts

    @staticmethod
    def _is_host(text: str) -> bool:
        try:
            address = parse_address(f"{text}:1")
        except AddressError:
            return False
        return isinstance(address, TcpAddress) and bool(address.host)


class Paths(_Strings):
    """Any number of request paths, none twice."""

    name = "string or list of strings"
    allowed = 'one string or a list of strings, each a path as requests have it, such as "/health"'

    def parse(self, value: object) -> list[str]:
        """Return the paths as a list."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise self.unsuitable(value)
        return _each(texts, self._parse_one)

    def _parse_one(self, text: object) -> str:
        if not isinstance(text, str) or _PATH.fullmatch(text) is None:
            raise UnsuitableError(
                f"found {toml_format.describe(text)} in the list; allowed is {self.allowed}, "
                "percent-encoded and without a query"
            )
        return text
