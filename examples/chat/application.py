"""A chat over server-sent events: every open stream waits without holding a thread.

`POST /say` sends a line to everybody who has `GET /events` open. A stream parks with
`x-wsgiorg.suspend` until there is something to send; thousands of them share a few threads, and
Flask, its debugger and its extensions work as ever, since nothing is patched. A generator that
blocked instead (`queue.get()`, `time.sleep()`) would hold a thread for as long as it does.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from flask import Flask, Response, request

app = Flask(__name__)

# After so long without a message a comment is sent, so that proxies keep the connection, and a
# client that has gone is noticed.
KEEP_ALIVE_MS = 15_000
# Of one client that reads too slowly; the oldest go first.
BACKLOG = 100

PAGE = """<!doctype html><meta charset="utf-8"><title>Chat</title>
<form><input name="line" autofocus autocomplete="off"><button>Say</button></form><pre></pre>
<script>
const form = document.querySelector("form"), log = document.querySelector("pre");
form.onsubmit = (event) => {
  event.preventDefault();
  fetch("/say", {method: "POST", body: new FormData(form)});
  form.reset();
};
new EventSource("/events").onmessage = (event) => { log.prepend(event.data + "\\n"); };
</script>"""


class Mailbox:
    """What one stream has still to send, and how it is woken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=BACKLOG)
        self._resume: Callable[[], None] | None = None

    def put(self, line: str) -> None:
        """Add a line and wake the stream. Any thread."""
        with self._lock:
            self._lines.append(line)
            resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def take(self) -> list[str]:
        """Return all lines and forget them."""
        with self._lock:
            lines = list(self._lines)
            self._lines.clear()
        return lines

    def wake_with(self, resume: Callable[[], None]) -> None:
        """Call `resume` at the next line, or now if one has come meanwhile."""
        with self._lock:
            if not self._lines:
                self._resume = resume
                return
        resume()


class Room:
    """The mailboxes of all open streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mailboxes: set[Mailbox] = set()

    def enter(self) -> Mailbox:
        """Return a new mailbox that gets every line from now on."""
        mailbox = Mailbox()
        with self._lock:
            self._mailboxes.add(mailbox)
        return mailbox

    def leave(self, mailbox: Mailbox) -> None:
        """Forget a mailbox."""
        with self._lock:
            self._mailboxes.discard(mailbox)

    def say(self, line: str) -> int:
        """Give everybody a line; return how many there are."""
        with self._lock:
            mailboxes = list(self._mailboxes)
        for mailbox in mailboxes:
            mailbox.put(line)
        return len(mailboxes)


room = Room()


@app.get("/")
def index() -> str:
    """Show the chat."""
    return PAGE


@app.post("/say")
def say() -> dict[str, int]:
    """Send a line to every stream."""
    line = " ".join(request.form["line"].split())
    return {"listeners": room.say(line)}


@app.get("/events")
def events() -> Response:
    """Stream every line from now on."""
    suspend = request.environ["x-wsgiorg.suspend"]
    timeout = request.environ["x-wsgiorg.fdevent.timeout"]
    return Response(stream(suspend, timeout), mimetype="text/event-stream")


def stream(suspend: Callable[[int], Callable[[], None]], timeout: object) -> Iterator[str]:
    """Yield events; an empty string parks the stream until it is resumed."""
    mailbox = room.enter()
    try:
        yield ": welcome\n\n"
        while True:
            mailbox.wake_with(suspend(KEEP_ALIVE_MS))
            yield ""
            if timeout:
                yield ": still here\n\n"
            for line in mailbox.take():
                yield f"data: {line}\n\n"
    finally:
        # The client has left, or the server ends.
        room.leave(mailbox)
