"""What ``proxy.trusted`` may say, as text: addresses, CIDR ranges and the word "unix"."""

from __future__ import annotations

import re

from serve_zig.toml_format import string as quoted

UNIX = "unix"

_RANGE = re.compile(r"([0-9A-Fa-f.:]+)(/(0|[1-9][0-9]{0,2}))?")


class NetworkError(ValueError):
    """The text is not a network; the message says why and what to write."""


def parse_network(text: str) -> str:
    """Return the network that ``text`` spells, in its shortest form; raise NetworkError."""
    if text == UNIX:
        return text
    # Few configs name any, and the module takes a while to import.
    import ipaddress

    try:
        # A zone, a dotted mask and what else the module takes besides are not for the core.
        if _RANGE.fullmatch(text) is None:
            raise ValueError(text)
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise NetworkError(
            f'found {quoted(text)}; write an address ("192.0.2.1", "2001:db8::1"), a range '
            f'("10.0.0.0/8", "fd00::/8") or "unix" for whoever connects to a unix socket'
        ) from None
    network = interface.network
    if network.network_address != interface.ip:
        raise NetworkError(
            f"found {quoted(text)}, which has bits set beyond its prefix; write "
            f"{quoted(str(network))} for the range, or {quoted(str(interface.ip))} for the address"
        )
    if network.prefixlen == network.max_prefixlen:
        return str(interface.ip)
    return str(network)
