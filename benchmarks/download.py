"""Takes one file over one connection and prints how long it took; a client of static.py.

python benchmarks/download.py PORT PATH BYTES
"""

from __future__ import annotations

import json
import socket
import sys
import time

PIECE = 1 << 20


def main() -> int:
    port, path, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    piece = bytearray(PIECE)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request.encode())
        began = time.perf_counter()
        head = b""
        while b"\r\n\r\n" not in head:
            received = client.recv(4096)
            if not received:
                return 1
            head += received
        left = size - len(head.partition(b"\r\n\r\n")[2])
        while left > 0:
            count = client.recv_into(piece)
            if count == 0:
                return 1
            left -= count
        seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "status": int(head[9:12])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
