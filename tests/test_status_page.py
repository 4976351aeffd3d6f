"""The status page in a real browser: what it shows, what a click does, and what it asks for."""

import threading
from collections.abc import Iterator

import pytest

from admin_client import serve_with_admin
from browser import Browser, find_browser
from serving import Servers
from wire import get

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; it takes a second to start."""
    with Browser() as opened:
        yield opened


def test_page_shows_load_and_stacks(serve: Servers, browser: Browser) -> None:
    """Charts of what goes on, a table of what is in flight, and a stack on click."""
    server, admin = serve_with_admin(serve, "holding:app")
    stop = threading.Event()

    def load() -> None:
        with server.connect() as connection:
            while not stop.wait(0.005):
                connection.send(get("/"))
                connection.response()

    loader = threading.Thread(target=load)
    loader.start()
    url = f"http://{admin.bind}/"
    try:
        with server.connect() as stuck:
            stuck.send(get("/gate?page<b>bold"))
            server.wait_event("begun", path="/gate")
            browser.open(url)
            browser.wait_for("document.getElementById('state').textContent === 'serving'")
            row = "document.querySelector('#requests tr')"
            browser.wait_for(f"{row} !== null")
            # What a client sent is text and nothing else.
            assert "<b>bold" in browser.evaluate(f"{row}.innerText")
            assert "app" in browser.evaluate(f"{row}.children[1].innerText")
            browser.evaluate(f"{row}.querySelector('button').click()")
            stack = "document.getElementById('stackText').textContent"
            browser.wait_for(f"{stack}.includes('in wait_gate')")
            assert "holding.py" in browser.evaluate(stack)
            charts = browser.evaluate(
                "[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label'))"
            )
            assert [label.partition(":")[0] for label in charts] == [
                "Requests a second",
                "Mean time of a request, by phase",
                "Threads by state",
                "Queue",
            ]
            assert "running 1" in charts[2]
            # It updates itself: the second sample is the first with a rate.
            browser.wait_for("document.querySelectorAll('polyline')[0].points.length > 2")
            browser.wait_for("parseFloat(document.querySelector('.tile b').textContent) > 10")
            server.open_gate("page<b>bold")
            assert stuck.response().status == 200
            browser.wait_for(f"{row} === null")
        assert "holding:app" in browser.evaluate("document.getElementById('config').textContent")
    finally:
        stop.set()
        loader.join()
    # Works offline: nothing is asked of anybody else, and its own policy does not stop it.
    assert browser.requested() == {url, f"{url}status", f"{url}threads"}
    assert browser.complaints() == []
    assert server.stop() == 0
    browser.wait_for("document.getElementById('state').textContent === 'not reachable'")


def test_page_is_light_or_dark(serve: Servers, browser: Browser) -> None:
    """As the reader prefers."""
    _, admin = serve_with_admin(serve)
    seen = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.open(f"http://{admin.bind}/")
        browser.wait_for("document.getElementById('state').textContent === 'serving'")
        seen.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(246, 247, 249)", "rgb(20, 23, 26)"]


def test_policy_of_the_page(serve: Servers) -> None:
    """Only its own script and style run, and it speaks to its own server alone."""
    _, admin = serve_with_admin(serve)
    response = admin.ask("/")
    policy = response.value("Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; connect-src 'self'; ")
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert b"http://" not in response.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in response.body
