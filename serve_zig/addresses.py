"""What ``listen.bind`` may say, as text: nothing is resolved, opened or bound here. And URLs."""

from __future__ import annotations

import os
import re
import socket

from serve_zig.toml_format import string as quoted

_PORT_MAX = 65_535
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")

_PATH_CHARACTERS = _HOST_CHARACTERS | frozenset("~/")

_SYSTEMD = "systemd"
# sd_listen_fds(3): ASCII without control characters and the colon.
_SOCKET_NAME = re.compile(r"[!-9;-~][ -9;-~]{0,254}")

MASK = "***"
"""What is shown in the place of a secret."""

# Up to the last "@": a password may hold what would end it in a URL that is well formed.
_CREDENTIALS = re.compile(r"(?<=://)\S*@")
_CREDENTIALS_OF_NO_URL = re.compile(r"(?<=://).*@")
# A parameter without a name is all value.
_QUERY_VALUE = re.compile(r"(?<=[?&])([^=&#\s]*=|)[^&#\s]+")
_SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|credential|private|authorization|signature|dsn|api_?key"
    r"|(^|_)(key|auth|pw|pwd)($|_)",
    re.IGNORECASE,
)


class AddressError(ValueError):
    """The text is not an address; the message says why and what to write."""


class TcpAddress:
    """A host and a port. An empty host stands for every interface, a port of 0 for a free one."""

    __slots__ = ("host", "port", "text")

    def __init__(self, text: str, host: str, port: int) -> None:
        self.text = text
        self.host = host
        self.port = port


class UnixAddress:
    """The path of a socket file."""

    __slots__ = ("path", "text")

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path


class InheritedAddress:
    """A descriptor that the parent process bound."""

    __slots__ = ("descriptor", "text")

    def __init__(self, text: str, descriptor: int) -> None:
        self.text = text
        self.descriptor = descriptor


class ActivatedAddress:
    """Sockets of systemd's socket activation: those of a name, or all for the empty one."""

    __slots__ = ("name", "text")

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name


Address = TcpAddress | UnixAddress | InheritedAddress | ActivatedAddress


def parse_address(text: str) -> Address:
    """Return the address that ``text`` spells; raise AddressError."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("fd:"):
        return _parse_descriptor(text)
    if "://" in text:
        raise AddressError(
            f'found {quoted(text)}; write only host and port, such as "127.0.0.1:8000"'
        )
    return _parse_tcp(text)


def collide(first: Address, second: Address) -> bool:
    """Return whether only one of the two can be listened on, as far as their texts tell."""
    if isinstance(first, TcpAddress) and isinstance(second, TcpAddress):
        if first.port != second.port or first.port == 0:
            return False
        hosts = {_canonical(first.host), _canonical(second.host)}
        return len(hosts) == 1 or any(_covers(one, hosts) for one in hosts)
    if isinstance(first, UnixAddress) and isinstance(second, UnixAddress):
        return os.path.normpath(first.path) == os.path.normpath(second.path)
    if isinstance(first, InheritedAddress) and isinstance(second, InheritedAddress):
        return first.descriptor == second.descriptor
    if isinstance(first, ActivatedAddress) and isinstance(second, ActivatedAddress):
        return first.name == second.name
    return False


def _canonical(host: str) -> bytes | str:
    """Return the bytes of an address, a name as it stands; empty for all interfaces."""
    if host.lower() == "localhost":
        host = "127.0.0.1"
    for family in (socket.AF_INET, socket.AF_INET6):
        if _is_numeric(family, host):
            return socket.inet_pton(family, host)
    return host.lower()


def _covers(host: bytes | str, others: set[bytes | str]) -> bool:
    """Return whether a socket on this host takes the port from all of the others."""
    if host == "":
        return True
    # A wildcard takes the addresses of its family; a name may be of the other one.
    is_wildcard = isinstance(host, bytes) and not any(host)
    return is_wildcard and all(isinstance(one, bytes) and len(one) == len(host) for one in others)


def check_path_prefix(text: str) -> None:
    """Refuse what cannot be put before "livez" to make a path; raise AddressError."""
    is_path = text.startswith("/") and text.endswith("/") and not text.startswith("//")
    if not is_path or not _PATH_CHARACTERS.issuperset(text):
        raise AddressError(
            f"found {quoted(text)}; write a path that begins and ends with a slash and is of "
            'letters, digits and "-._~/", such as "/-/"'
        )


def parse_url(text: str) -> None:
    """Raise AddressError where the text is not an http or https URL with a host."""
    # Imported here: few configs have a URL.
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        # Raises where the port is no number or out of range.
        is_url = is_url and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        # It may be a password that keeps it from being one.
        shown = _CREDENTIALS_OF_NO_URL.sub(MASK + "@", text)
        raise AddressError(f'found {quoted(shown)}; write a URL, such as "http://collector:4318"')


def mask_secrets(text: str) -> str:
    """Return the text with what is secret in a URL masked: user, password, values of the query."""
    return _QUERY_VALUE.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", text))


def is_secret_name(name: str) -> bool:
    """Return whether a key, or a variable of the environment, names something secret."""
    return _SECRET_NAME.search(name) is not None


def _parse_descriptor(text: str) -> InheritedAddress | ActivatedAddress:
    rest = text.removeprefix("fd://")
    if _is_number(rest, 2**31 - 1):
        return InheritedAddress(text, int(rest))
    word, colon, name = rest.partition(":")
    if word == _SYSTEMD and not colon:
        return ActivatedAddress(text, "")
    if word == _SYSTEMD and _SOCKET_NAME.fullmatch(name):
        return ActivatedAddress(text, name)
    raise AddressError(
        f'found {quoted(text)}; write "fd://" and a descriptor, such as "fd://3", or, for sockets '
        'that systemd passes, "fd://systemd" for all of them and "fd://systemd:NAME" for those of '
        "a name (FileDescriptorName=)"
    )


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("@") or "\0" in path:
        raise AddressError(
            f"found {quoted(text)}; a socket without a file is not supported, name a path: "
            '"unix:/run/app.sock"'
        )
    if path in ("", "/") or path.endswith("/"):
        raise AddressError(f'found {quoted(text)}, which names no file; write "unix:/run/app.sock"')
    return UnixAddress(text, path)


def _parse_tcp(text: str) -> TcpAddress:
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        raise AddressError(f'found {quoted(text)}, which has no port; write "{text}:8000"')
    if not colon:
        if _is_number(text, _PORT_MAX):
            raise AddressError(
                f'found {quoted(text)}, which has no host; for all of them write ":{text}"'
            )
        raise AddressError(f'found {quoted(text)}, which has no port; write "{text}:8000"')
    if not _is_number(port, _PORT_MAX):
        raise AddressError(
            f"found {quoted(text)}, where {quoted(port)} is not a port; allowed is 0 to {_PORT_MAX}"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_numeric(socket.AF_INET6, host.partition("%")[0]):
            raise AddressError(f"found {quoted(text)}, where {quoted(host)} is not an IPv6 address")
    elif ":" in host:
        raise AddressError(
            f'found {quoted(text)}; an IPv6 address stands in brackets, such as "[::1]:8000"'
        )
    elif host == "*":
        raise AddressError(f'found {quoted(text)}; for all interfaces write ":{port}"')
    elif not _HOST_CHARACTERS.issuperset(host):
        raise AddressError(
            f"found {quoted(text)}, where {quoted(host)} is not a host name or address"
        )
    elif host.rpartition(".")[2].isdigit() and not _is_numeric(socket.AF_INET, host):
        # The last label of a host name is not all digits (RFC 1123 section 2.1), so this is an
        # IPv4 address gone wrong, which the resolver would take for another one ("127.1").
        raise AddressError(f"found {quoted(text)}, where {quoted(host)} is not an IPv4 address")
    return TcpAddress(text, host, int(port))


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most


def _is_numeric(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return True
