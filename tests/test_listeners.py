"""Addresses and listeners: what listen.bind may say, and what is opened for it."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serve_zig import listeners as module
from serve_zig.addresses import (
    AddressError,
    InheritedAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from serve_zig.errors import ListenerError
from serve_zig.listeners import Listener, close_listeners, open_listeners
from wire import PATIENCE

PLACE = "serve.toml:4: listen.bind"


def has_ipv6() -> bool:
    """Return whether this machine has the IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Opener:
    """Opens listeners and closes them with the test."""

    def __init__(self) -> None:
        self.opened: list[Listener] = []

    def __call__(self, *texts: str, mode: int = 0o666, listen: bool = True) -> list[Listener]:
        opened = open_listeners(texts, mode, PLACE)
        self.opened += opened
        if listen:
            for one in opened:
                one.listen(16)
        return opened

    def refuse(self, *texts: str, listen: bool = True) -> str:
        """Return the message of the failure, less the place with which it begins."""
        with pytest.raises(ListenerError) as caught:
            self(*texts, listen=listen)
        assert caught.value.exit_status == 1
        (problem,) = caught.value.problems
        assert problem.startswith(f"{PLACE}: ")
        assert "\n" not in problem
        return problem.removeprefix(f"{PLACE}: ")


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Return an opener of listeners."""
    made = Opener()
    yield made
    close_listeners(made.opened)


# Text.


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:8000", "::1", 8000),
        ("[::]:65535", "::", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        (":8000", "", 8000),
        ("localhost:80", "localhost", 80),
        ("a-b.example.org:80", "a-b.example.org", 80),
        ("host_1:80", "host_1", 80),
        ("1.example:80", "1.example", 80),
    ],
)
def test_tcp_address(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    assert (address.host, address.port, address.text) == (host, port, text)


def test_unix_and_inherited_addresses() -> None:
    address = parse_address("unix:/run/app.sock")
    assert isinstance(address, UnixAddress)
    assert address.path == "/run/app.sock"
    inherited = parse_address("fd://3")
    assert isinstance(inherited, InheritedAddress)
    assert inherited.descriptor == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r'found "", which has no port'),
        ("8000", r'has no host; for all of them write ":8000"'),
        ("127.0.0.1", r'has no port; write "127.0.0.1:8000"'),
        ("[::1]", r'has no port; write "\[::1\]:8000"'),
        ("127.0.0.1:", r'where "" is not a port; allowed is 0 to 65535'),
        ("127.0.0.1:http", r'where "http" is not a port'),
        ("127.0.0.1:65536", r'where "65536" is not a port'),
        ("127.0.0.1:-1", r'where "-1" is not a port'),
        ("127.0.0.1:+1", r'where "\+1" is not a port'),
        ("127.0.0.1: 1", r'where " 1" is not a port'),
        ("127.0.0.1:٣", r"is not a port"),
        ("127.0.0.1:99999999999999999999", r"is not a port"),
        ("::1:8000", r'an IPv6 address stands in brackets, such as "\[::1\]:8000"'),
        ("[::g]:80", r'where "::g" is not an IPv6 address'),
        ("[127.0.0.1]:80", r"is not an IPv6 address"),
        ("256.0.0.1:80", r'where "256.0.0.1" is not an IPv4 address'),
        ("127.1:80", r'where "127.1" is not an IPv4 address'),
        ("*:80", r'for all interfaces write ":80"'),
        ("http://127.0.0.1:80", r"write only host and port"),
        ("tcp://127.0.0.1:80", r"write only host and port"),
        ("a b:80", r'where "a b" is not a host name'),
        ("caf\u00e9:80", r"is not a host name"),
        ("a\n:80", r'where "a\\n" is not a host name'),
        ("unix:", r"names no file"),
        ("unix:/", r"names no file"),
        ("unix:/run/", r"names no file"),
        ("unix:@name", r"a socket without a file is not supported"),
        ("unix:\0name", r"a socket without a file is not supported"),
        ("fd:3", r'write "fd://" and a descriptor'),
        ("fd://", r'write "fd://" and a descriptor'),
        ("fd://-1", r'write "fd://" and a descriptor'),
        ("fd://three", r'write "fd://" and a descriptor'),
    ],
)
def test_text_that_is_no_address(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse_address(text)


# TCP.


def test_ipv4_listener(opener: Opener) -> None:
    (listener,) = opener("127.0.0.1:0")
    assert listener.url == f"http://127.0.0.1:{listener.port}"
    assert (listener.server_name, listener.server_port) == ("127.0.0.1", str(listener.port))
    assert not os.get_blocking(listener._socket.fileno())
    assert not os.get_inheritable(listener._socket.fileno())
    socket.create_connection(("127.0.0.1", listener.port), PATIENCE).close()


def test_descriptor_that_was_handed_over_is_not_closed(opener: Opener) -> None:
    (listener,) = opener("127.0.0.1:0")
    port = listener.port
    with socket.socket(fileno=listener.hand_over()):
        listener.close()
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()


def test_number_of_listeners_has_a_limit(opener: Opener) -> None:
    opener(*["127.0.0.1:0"] * 64)
    assert opener.refuse(*["127.0.0.1:0"] * 65) == (
        "these addresses need 65 sockets; allowed are 64"
    )


def test_nobody_gets_in_before_the_listener_listens(opener: Opener) -> None:
    (listener,) = opener("127.0.0.1:0", listen=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), PATIENCE)
    listener.listen(1)
    socket.create_connection(("127.0.0.1", listener.port), PATIENCE).close()


@needs_ipv6
def test_ipv6_listener_is_for_ipv6_alone(opener: Opener) -> None:
    (listener,) = opener("[::]:0")
    assert listener.url == f"http://[::]:{listener.port}"
    assert listener.server_name == socket.gethostname()
    socket.create_connection(("::1", listener.port), PATIENCE).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), PATIENCE)


@needs_ipv6
def test_empty_host_is_every_interface_of_both_families(opener: Opener) -> None:
    first, second = opener(":0")
    assert first.port == second.port != 0
    assert [first.url, second.url] == [
        f"http://0.0.0.0:{first.port}",
        f"http://[::]:{first.port}",
    ]
    socket.create_connection(("127.0.0.1", first.port), PATIENCE).close()
    socket.create_connection(("::1", first.port), PATIENCE).close()


@pytest.mark.parametrize("lacking", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_empty_host_passes_over_a_family_that_the_machine_lacks(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, lacking: socket.AddressFamily, number: int
) -> None:
    bind = module._bind

    def bind_all_but(
        family: socket.AddressFamily, host: str, port: int, scope: int
    ) -> socket.socket:
        if family == lacking:
            raise OSError(number, "lacking")
        return bind(socket.AF_INET, "127.0.0.1", port, 0)

    monkeypatch.setattr(module, "_bind", bind_all_but)
    assert len(opener(":0")) == 1


def test_no_family_at_all_is_an_error(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def bind_none(family: socket.AddressFamily, host: str, port: int, scope: int) -> socket.socket:
        raise OSError(errno.EADDRNOTAVAIL, "lacking")

    monkeypatch.setattr(module, "_bind", bind_none)
    assert '":0" is no address of this machine' in opener.refuse(":0")


@needs_ipv6
def test_free_port_is_looked_for_again_when_one_family_has_it_taken(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = module._bind
    failures = iter([True, True, False])

    def bind_unlucky(
        family: socket.AddressFamily, host: str, port: int, scope: int
    ) -> socket.socket:
        if family == socket.AF_INET6 and next(failures):
            raise OSError(errno.EADDRINUSE, "taken")
        return bind(family, host, port, scope)

    monkeypatch.setattr(module, "_bind", bind_unlucky)
    first, second = opener(":0")
    assert first.port == second.port


def test_name_is_bound_at_each_of_its_addresses(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        stream = socket.SOCK_STREAM
        return [
            (socket.AF_INET, stream, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, stream, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, stream, 6, "", ("127.0.0.2", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    opened = opener("name.example:0")
    assert [one.server_name for one in opened] == ["127.0.0.1", "127.0.0.2"]
    assert len({one.port for one in opened}) == 1


def test_localhost_resolves(opener: Opener) -> None:
    assert "127.0.0.1" in [one.server_name for one in opener("localhost:0")]


def test_several_addresses_keep_their_order(opener: Opener, tmp_path: Path) -> None:
    first, second, third = opener("127.0.0.1:0", f"unix:{tmp_path}/a", "127.0.0.1:0")
    assert first.url.startswith("http:")
    assert second.url == f"unix:{tmp_path}/a"
    assert third.url.startswith("http:")


def test_taken_port_is_one_clear_line(opener: Opener) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        text = f"127.0.0.1:{other.getsockname()[1]}"
        assert opener.refuse(text) == (
            f'"{text}" is taken: the address is in use; stop its user or choose another'
        )


def test_port_that_is_taken_after_it_was_bound(opener: Opener) -> None:
    (first,) = opener("127.0.0.1:0", listen=False)
    text = f"127.0.0.1:{first.port}"
    # With SO_REUSEADDR two may be bound, but only one of them may listen.
    opener(text)
    with pytest.raises(ListenerError, match="is taken"):
        first.listen(1)


def test_failure_closes_what_was_opened(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    opener.refuse(f"unix:{path}", "unix:/nonexistent/b.sock")
    assert not path.exists()


def test_name_that_does_not_resolve(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert opener.refuse("nowhere.invalid:80") == (
        'the host of "nowhere.invalid:80" cannot be resolved (Name or service not known); mend '
        "the name or write an address"
    )


def test_name_that_the_resolver_cannot_encode(opener: Opener) -> None:
    assert "cannot be resolved" in opener.refuse(f"{'a' * 70}.example:80")


def test_address_of_another_machine(opener: Opener) -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    assert opener.refuse("192.0.2.1:80").startswith('"192.0.2.1:80" is no address of this machine')


@pytest.mark.parametrize(
    ("number", "text", "what"),
    [
        (errno.EACCES, "127.0.0.1:80", "CAP_NET_BIND_SERVICE"),
        (errno.EPERM, "127.0.0.1:80", "permission denied; choose a port from 1024"),
        (errno.EMFILE, "127.0.0.1:80", "cannot be bound: Too many open files"),
    ],
)
def test_refusals_of_the_system(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, number: int, text: str, what: str
) -> None:
    def fail(family: socket.AddressFamily, host: str, port: int, scope: int) -> socket.socket:
        raise OSError(number, "refused")

    monkeypatch.setattr(module, "_bind", fail)
    assert what in opener.refuse(text)


# Unix sockets.


def test_unix_listener(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    (listener,) = opener(f"unix:{path}")
    assert listener.url == f"unix:{path}"
    assert (listener.server_name, listener.server_port) == ("localhost", "80")
    assert listener.port == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()
    listener.close()


def test_file_of_a_handed_over_socket_is_removed(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    (listener,) = opener(f"unix:{path}")
    with socket.socket(fileno=listener.hand_over()):
        listener.remove_file()
        assert not path.exists()
        # Another server may come before this one has ended.
        path.touch()
        listener.close()
    assert path.exists()


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o600])
def test_unix_socket_has_the_mode_from_the_start(opener: Opener, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "app.sock"
    mask = os.umask(0o027)
    try:
        opener(f"unix:{path}", mode=mode, listen=False)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_stale_socket_file_is_replaced(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
    assert path.exists()
    opener(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_socket_in_use_is_not_replaced(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert opener.refuse(f"unix:{path}") == (
            f"{path} is taken: another process listens on it; stop that one or name another path"
        )
    assert path.exists()


def test_socket_of_another_type_is_not_replaced(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert "is taken" in opener.refuse(f"unix:{path}")
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_file_that_is_no_socket_is_left_alone(opener: Opener, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "app.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    assert opener.refuse(f"unix:{path}") == (
        f"{path} exists and is not a socket; remove it or name another path"
    )
    assert path.exists() or path.is_symlink()


def test_socket_that_may_not_be_probed_is_left_alone(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))

        def refuse(_: socket.socket, __: object) -> int:
            return errno.EACCES

        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        assert "permission denied" in opener.refuse(f"unix:{path}")
    assert path.exists()


def test_directory_of_a_socket_must_exist(opener: Opener, tmp_path: Path) -> None:
    text = f"unix:{tmp_path}/gone/app.sock"
    assert opener.refuse(text) == f'"{text}" lies in a directory that does not exist; make it'


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_of_a_socket_must_be_writable(opener: Opener, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permission denied; choose a directory" in opener.refuse(f"unix:{tmp_path}/app.sock")


def test_socket_file_of_another_server_is_not_removed(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    (listener,) = opener(f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.exists()


def test_socket_file_is_not_removed_by_a_child_process(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    (listener,) = opener(f"unix:{path}")
    listener._process = os.getpid() + 1
    listener.close()
    assert path.exists()


# Inherited descriptors.


def inherit(other: socket.socket) -> int:
    """Return a duplicate of the socket's descriptor, for a listener to own."""
    return os.dup(other.fileno())


def test_inherited_listener(opener: Opener) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        descriptor = inherit(other)
        os.set_inheritable(descriptor, True)
        (listener,) = opener(f"fd://{descriptor}")
        assert listener._socket.fileno() == descriptor
        assert listener.url == f"http://127.0.0.1:{port}"
        assert listener.server_port == str(port)
        assert not os.get_inheritable(descriptor)
        assert not os.get_blocking(descriptor)


def test_inherited_unix_listener_keeps_its_file(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        (listener,) = opener(f"fd://{inherit(other)}")
        assert listener.url == f"unix:{path}"
        assert (listener.server_name, listener.server_port) == ("localhost", "80")
        listener.close()
    assert path.exists()


def test_descriptor_that_is_not_open(opener: Opener) -> None:
    assert opener.refuse("fd://987654") == (
        "fd://987654: descriptor 987654 is not open in this process; pass a listening stream "
        "socket, for instance from systemd with Accept=no"
    )


def test_descriptor_that_is_no_socket(opener: Opener, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as stream:
        number = stream.fileno()
        assert f"descriptor {number} is no socket" in opener.refuse(f"fd://{number}")
        os.fstat(number)


def test_descriptor_that_does_not_listen(opener: Opener) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        number = other.fileno()
        assert "is a socket that does not listen" in opener.refuse(f"fd://{number}")
        os.fstat(number)


def test_descriptor_that_is_no_stream(opener: Opener) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        number = other.fileno()
        assert "but no stream of IPv4, IPv6 or unix" in opener.refuse(f"fd://{number}")
        os.fstat(number)
