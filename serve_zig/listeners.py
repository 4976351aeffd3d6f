"""Listeners: the sockets on which connections are accepted, opened from parsed addresses.

A socket is bound before the application is imported, so that a taken port is told at once, and
listens only after it, so that nobody waits in the backlog of a server that may never serve.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from serve_zig.activation import passed_sockets
from serve_zig.addresses import (
    ActivatedAddress,
    Address,
    InheritedAddress,
    TcpAddress,
    UnixAddress,
    collide,
    parse_address,
)
from serve_zig.errors import ListenerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What the core has room for.
LISTENERS_MAX = 64

# How often a free port of one address family is looked for that the other has free too.
_FREE_PORT_TRIES_MAX = 16

# PEP 3333 wants SERVER_NAME and SERVER_PORT to be filled where a socket has neither.
_UNIX_SERVER_NAME = "localhost"
_UNIX_SERVER_PORT = "80"

_FAMILY_UNAVAILABLE = frozenset(
    {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT}
)


class Listener:
    """A bound socket. It owns the descriptor until that is handed over to the core.

    The file of a unix socket that it made stays its own. ``place`` says where the address was
    written; each message begins with it.
    """

    def __init__(
        self, bound: socket.socket, address: Address, place: str, path: str | None = None
    ) -> None:
        self._socket = bound
        self._address = address
        self._place = place
        self._path = path
        self._process = os.getpid()
        self._file_identity = _identity(path) if path else None
        bound.setblocking(False)
        name = bound.getsockname()
        if bound.family in (socket.AF_INET, socket.AF_INET6):
            host, port = str(name[0]), int(name[1])
            self.host = f"[{host}]" if ":" in host else host
            self.url = f"http://{self.host}:{port}"
            self.server_name = _server_name(host)
            self.server_port = str(port)
        else:
            shown = os.fsdecode(name).replace("\0", "@")
            self.host = ""
            self.url = f"unix:{shown}"
            self.server_name = _UNIX_SERVER_NAME
            self.server_port = _UNIX_SERVER_PORT

    @property
    def is_shared(self) -> bool:
        """Whether other processes may accept from it too."""
        return isinstance(self._address, InheritedAddress | ActivatedAddress)

    @property
    def port(self) -> int:
        """The port in use; 0 for a unix socket."""
        name = self._socket.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def listen(self, backlog: int) -> None:
        """Let connections in; raise ListenerError."""
        try:
            self._socket.listen(backlog)
        except OSError as error:
            raise _failure(error, self._address.text, self._place) from None

    def hand_over(self) -> int:
        """Return the descriptor, which is the caller's to close from now on."""
        return self._socket.detach()

    def remove_file(self) -> None:
        """Remove the file of a unix socket, unless it is another's by now.

        Only while the socket is open: after that another file may have the same inode number, and
        could not be told from this one.
        """
        path, self._path = self._path, None
        if path is None or os.getpid() != self._process or _identity(path) != self._file_identity:
            return
        # A directory may have become read-only: then the next start replaces the file.
        with contextlib.suppress(OSError):
            os.unlink(path)

    def close(self) -> None:
        """Remove the file, and close the socket unless it was handed over."""
        self.remove_file()
        self._socket.close()


def open_listeners(texts: Sequence[str], unix_mode: int, place: str) -> list[Listener]:
    """Return a bound listener for each address, more where a host has several.

    ``texts`` have been checked by ``parse_address``. Raises ListenerError, which tells of every
    address that could not be opened, after closing what was.
    """
    listeners: list[Listener] = []
    problems: list[str] = []
    addresses = [parse_address(text) for text in texts]
    try:
        for index, address in enumerate(addresses):
            other = next((one for one in addresses[:index] if collide(one, address)), None)
            if other is not None:
                problems.append(
                    f'{place}: "{other.text}" and "{address.text}" are one address; remove one'
                )
                continue
            try:
                listeners.extend(_open(address, unix_mode, place))
            except ListenerError as error:
                problems.extend(error.problems)
        if problems:
            raise ListenerError(*problems)
        if len(listeners) > LISTENERS_MAX:
            raise ListenerError(
                f"{place}: these addresses need {len(listeners)} sockets; allowed are "
                f"{LISTENERS_MAX}"
            )
    except BaseException:
        close_listeners(listeners)
        raise
    return listeners


def close_listeners(listeners: Sequence[Listener]) -> None:
    """Close every listener."""
    for listener in listeners:
        listener.close()


def _open(address: Address, unix_mode: int, place: str) -> list[Listener]:
    if isinstance(address, UnixAddress):
        return [_open_unix(address, unix_mode, place)]
    if isinstance(address, InheritedAddress):
        passed_sockets().claim(address.descriptor)
        return [_open_inherited(address, address.descriptor, place)]
    if isinstance(address, ActivatedAddress):
        return _open_activated(address, place)
    return _open_tcp(address, place)


def _open_tcp(address: TcpAddress, place: str) -> list[Listener]:
    endpoints = _resolve(address, place)
    failure: OSError | None = None
    for _ in range(_FREE_PORT_TRIES_MAX):
        try:
            return _bind_all(endpoints, address, place)
        except OSError as error:
            failure = error
            # Only where the system chose the port can another try end otherwise.
            if address.port != 0 or error.errno != errno.EADDRINUSE:
                break
    assert failure is not None
    raise _failure(failure, address.text, place)


def _resolve(address: TcpAddress, place: str) -> list[tuple[socket.AddressFamily, str, int]]:
    """Return family, host and IPv6 scope for each address of the host."""
    if not address.host:
        # Two sockets and not one for both families: on such a one an IPv4 client has an
        # IPv6-mapped address, which no list of trusted addresses expects.
        return [(socket.AF_INET, "0.0.0.0", 0), (socket.AF_INET6, "::", 0)]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError, LookupError) as error:
        # LookupError: the codec of host names could not be imported.
        reason = getattr(error, "strerror", None) or error
        raise ListenerError(
            f'{place}: the host of "{address.text}" cannot be resolved ({reason}); mend the name '
            "or write an address"
        ) from None
    endpoints: dict[tuple[socket.AddressFamily, str, int], None] = {}
    for family, _, _, _, name in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            endpoints[family, str(name[0]), int(name[3]) if len(name) == 4 else 0] = None
    return list(endpoints)


def _bind_all(
    endpoints: list[tuple[socket.AddressFamily, str, int]], address: TcpAddress, place: str
) -> list[Listener]:
    """Bind every endpoint to one port; pass over those whose family the machine lacks."""
    listeners: list[Listener] = []
    port = address.port
    lacking: OSError | None = None
    try:
        for family, host, scope in endpoints:
            try:
                bound = _bind(family, host, port, scope)
            except OSError as error:
                if error.errno not in _FAMILY_UNAVAILABLE:
                    raise
                lacking = error
                continue
            listeners.append(Listener(bound, address, place))
            port = listeners[-1].port
    except BaseException:
        close_listeners(listeners)
        raise
    if not listeners:
        assert lacking is not None
        raise lacking
    return listeners


def _bind(family: socket.AddressFamily, host: str, port: int, scope: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that a restart need not wait for connections in TIME_WAIT; it does not let two
        # servers listen on one port.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # The same on every machine, whatever net.ipv6.bindv6only says.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind((host, port, 0, scope))
        else:
            opened.bind((host, port))
    except BaseException:
        opened.close()
        raise
    return opened


def _open_unix(address: UnixAddress, mode: int, place: str) -> Listener:
    _remove_stale(address, place)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mask, and not a chmod afterwards: at no time may more connect than the mode says. No
    # thread runs yet that might make a file meanwhile.
    mask = os.umask(0o777 & ~mode)
    try:
        opened.bind(address.path)
    except OSError as error:
        opened.close()
        raise _failure(error, address.text, place) from None
    finally:
        os.umask(mask)
    return Listener(opened, address, place, address.path)


def _remove_stale(address: UnixAddress, place: str) -> None:
    """Remove a socket file on which nobody listens any more; raise for any other file."""
    try:
        status = os.lstat(address.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error, address.text, place) from None
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenerError(
            f"{place}: {address.path} exists and is not a socket; remove it or name another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refusal = probe.connect_ex(address.path)
    if refusal in (errno.ECONNREFUSED, errno.ENOENT):
        try:
            os.unlink(address.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failure(error, address.text, place) from None
        return
    if refusal in (errno.EACCES, errno.EPERM):
        raise ListenerError(
            f"{place}: {address.path} exists and may not be opened to see whether it is in use "
            "(permission denied); remove it or name another path"
        )
    raise ListenerError(
        f"{place}: {address.path} is taken: another process listens on it; stop that one or name "
        "another path"
    )


def _open_activated(address: ActivatedAddress, place: str) -> list[Listener]:
    sockets = passed_sockets()
    if sockets.absence:
        raise ListenerError(
            f"{place}: {address.text}: {sockets.absence}; start it by a socket unit, or name an "
            "address"
        )
    left = sockets.left()
    descriptors = sockets.take(address.name)
    if not descriptors:
        names = ", ".join(dict.fromkeys(left)) or "none that no other address names"
        raise ListenerError(
            f"{place}: {address.text}: systemd has passed no such socket; there are: {names} "
            "(FileDescriptorName= in the socket unit names one)"
        )
    opened: list[Listener] = []
    try:
        for number in descriptors:
            opened.append(_open_inherited(address, number, place))
    except ListenerError:
        close_listeners(opened)
        raise
    return opened


def _open_inherited(
    address: InheritedAddress | ActivatedAddress, number: int, place: str
) -> Listener:
    mend = "pass a listening stream socket, for instance from systemd with Accept=no"
    try:
        is_socket = stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        raise ListenerError(
            f"{place}: {address.text}: descriptor {number} is not open in this process; {mend}"
        ) from None
    if not is_socket:
        raise ListenerError(f"{place}: {address.text}: descriptor {number} is no socket; {mend}")
    inherited = socket.socket(fileno=number)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if inherited.family not in families or inherited.type != socket.SOCK_STREAM:
        inherited.detach()
        raise ListenerError(
            f"{place}: {address.text}: descriptor {number} is a socket, but no stream of IPv4, "
            f"IPv6 or unix; {mend}"
        )
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        inherited.detach()
        raise ListenerError(
            f"{place}: {address.text}: descriptor {number} is a socket that does not listen; {mend}"
        )
    inherited.set_inheritable(False)
    return Listener(inherited, address, place)


def _failure(error: OSError, text: str, place: str) -> ListenerError:
    match error.errno:
        case errno.EADDRINUSE:
            what = f'"{text}" is taken: the address is in use; stop its user or choose another'
        case errno.EACCES | errno.EPERM if text.startswith("unix:"):
            what = f'"{text}" may not be made: permission denied; choose a directory of this user'
        case errno.EACCES | errno.EPERM:
            what = (
                f'"{text}" may not be bound: permission denied; choose a port from 1024, or grant '
                "CAP_NET_BIND_SERVICE"
            )
        case errno.EADDRNOTAVAIL:
            what = f'"{text}" is no address of this machine; choose one that is, or ":port" for all'
        case errno.ENOENT | errno.ENOTDIR:
            what = f'"{text}" lies in a directory that does not exist; make it'
        case errno.EROFS:
            what = f'"{text}" lies on a file system that is read-only; choose another directory'
        case _:
            reason = os.strerror(error.errno) if error.errno else str(error)
            what = f'"{text}" cannot be bound: {reason}'
    return ListenerError(f"{place}: {what}")


def _server_name(host: str) -> str:
    # A wildcard is where to listen, not a name to be called by; no lookup, which might hang.
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
