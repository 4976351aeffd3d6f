"""What the core leaves for the operator to be told once, as lines for the log."""

from __future__ import annotations

_STALLED = (
    ("stalled_for_connections", "limits.connections is reached, and no connection is idle"),
    ("stalled_for_descriptors", "the process may open no more files (ulimit -n)"),
    ("stalled_for_buffers", "limits.buffer_memory is reached"),
    (
        "stalled_for_kernel_memory",
        "the kernel's memory for TCP is short (net.ipv4.tcp_mem), or a quarter of the memory of "
        "the machine or the container is in it",
    ),
    ("stalled_for_threads", "requests wait, and every thread is taken (concurrency.threads)"),
)
_DROPPED = {
    "connection_dropped": "Connection",
    "keep_alive_dropped": "Keep-Alive",
    "proxy_connection_dropped": "Proxy-Connection",
}


def level_of(kind: str) -> str:
    """Return the level of the line for a notice."""
    return "info" if kind in _DROPPED else "warning"


def text_of(kind: str, address: str) -> str:
    """Return the line for a notice; ``address`` is empty where the peer has none."""
    peer = address or "a unix socket"
    word = address or "unix"
    if kind == "forwarded_fields_stripped":
        return (
            f"forwarded fields (X-Forwarded-*, Forwarded) from {peer} are not believed, and the "
            "application does not get them; if a proxy of yours sends them, name it: proxy.trusted "
            f'= ["{word}"] (said once, for the first peer)'
        )
    if kind == "proxy_header_missing":
        return (
            f"{peer}, which proxy.trusted holds, began without a valid PROXY header, so that its "
            "connection was closed; let the proxy send one, or set proxy.protocol = false (said "
            "once, for the first peer)"
        )
    if kind == "connections_full":
        return (
            "limits.connections is reached: for each new connection the one that has been idle "
            "longest is closed (said once; serve_zig_connections_closed_total counts them)"
        )
    if kind == "descriptors_exhausted":
        return (
            "the process may open no more files (ulimit -n): for each new connection the one that "
            "has been idle longest is closed (said once; serve_zig_connections_closed_total "
            "counts them)"
        )
    if kind == "buffers_full":
        return (
            "limits.buffer_memory is reached: large request bodies go on in temporary files, and "
            "no response is made far ahead of its client (said once; "
            "serve_zig_buffer_memory_bytes tells how much is held)"
        )
    for cause, reason in _STALLED:
        if kind == cause:
            return (
                f"{reason}: clients that take nothing of their responses are cut off, the longest "
                "stalled first (said once; serve_zig_connections_closed_total counts them)"
            )
    if kind in _DROPPED:
        obeyed = ' ("close" is obeyed)' if kind == "connection_dropped" else ""
        return (
            f"the application sets the response field {_DROPPED[kind]}, which is the server's to "
            f"send (PEP 3333): it is left out{obeyed} (said once)"
        )
    return f"{kind}: {peer}"
