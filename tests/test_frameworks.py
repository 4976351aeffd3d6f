"""The examples: Flask, Django, Falcon and Bottle applications, each with its own serve.toml."""

import hashlib
import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from serving import REPOSITORY, Server, Servers
from wire import PATIENCE, chunked, get

EXAMPLES = REPOSITORY / "examples"
FRAMEWORKS = ["flask", "django", "falcon", "bottle"]
FOLDERS = {
    "flask": EXAMPLES / "flask_app",
    "django": EXAMPLES / "django_project",
    "falcon": EXAMPLES / "falcon_app",
    "bottle": EXAMPLES / "bottle_app",
}
PLANETS = (EXAMPLES / "flask_app" / "files" / "planets.csv").read_bytes()
PASSWORD = "a password for the tests"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Django example's database with a superuser, made as its README says."""
    path = tmp_path_factory.mktemp("database") / "notes.sqlite3"
    manage = FOLDERS["django"] / "manage.py"
    subprocess.run(
        [sys.executable, str(manage), "setup", "--username", "admin", "--password", PASSWORD],
        env={**os.environ, "NOTES_DATABASE": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    return path


@pytest.fixture(scope="module")
def servers(serve_module: Servers, database: Path) -> dict[str, Server]:
    """One server of each example."""
    return {
        name: serve_module(
            config_file=folder / "serve.toml",
            environment={"NOTES_DATABASE": str(database)},
        )
        for name, folder in FOLDERS.items()
    }


@pytest.fixture(params=FRAMEWORKS)
def site(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Iterator["Site"]:
    """Each example in turn, with a new client."""
    with requests.Session() as session:
        yield Site(request.param, servers[request.param], session)


class Site:
    """One example and a client of it, which keeps cookies and its connection."""

    def __init__(self, name: str, server: Server, session: requests.Session) -> None:
        self.name = name
        self.server = server
        self.session = session

    def get(self, path: str, **options: Any) -> requests.Response:
        """Send GET."""
        return self.session.get(self.server.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        """Send POST, with Django's token against forged forms where there is one."""
        if self.name == "django":
            if "csrftoken" not in self.session.cookies:
                self.get("/")
            headers = options.setdefault("headers", {})
            headers["X-CSRFToken"] = self.session.cookies["csrftoken"]
        return self.session.post(self.server.url + path, timeout=PATIENCE, **options)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_examples_have_their_own_config(name: str) -> None:
    """What a reader copies: a target and an address."""
    config = tomllib.loads((FOLDERS[name] / "serve.toml").read_text("utf-8"))
    assert config["listen"]["bind"] == "127.0.0.1:8000"
    assert ":" in config["app"]["target"]


def test_page(site: Site) -> None:
    """The first page is HTML and has its forms."""
    response = site.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert "multipart/form-data" in response.text
    assert response.headers["Server"] == "serve-zig"


def test_form(site: Site) -> None:
    """A urlencoded form with characters beyond ASCII."""
    response = site.post("/form", data={"name": "Zoë & Søn"})
    assert response.status_code == 200, response.text
    assert response.json() == {"greeting": "Hello, Zoë & Søn!"}


def test_bad_form(site: Site) -> None:
    """A form without its field is the client's mistake, answered by the framework."""
    assert site.post("/form", data={"other": "1"}).status_code == 400


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_upload(site: Site, size: int) -> None:
    """An upload of any size, in memory and past it, arrives byte for byte."""
    content = random.Random(size).randbytes(size)
    files = {"file": ("a file.bin", content, "application/octet-stream")}
    response = site.post("/upload", files=files)
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["size"] == size
    assert found["sha256"] == hashlib.sha256(content).hexdigest()


def test_chunked_upload(site: Site) -> None:
    """The same from a client that does not know the length beforehand."""
    content = random.Random(5).randbytes(200_000)
    body = (
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="x.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--limit--\r\n"
    )
    pieces = (body[start : start + 30_011] for start in range(0, len(body), 30_011))
    headers = {"Content-Type": "multipart/form-data; boundary=limit"}
    response = site.post("/upload", data=pieces, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_session(site: Site) -> None:
    """A session lives in the client's cookie, and another client has its own."""
    assert [site.get("/visits").json()["visits"] for _ in range(3)] == [1, 2, 3]
    with requests.Session() as other:
        assert other.get(f"{site.server.url}/visits", timeout=PATIENCE).json() == {"visits": 1}


def test_stream(site: Site) -> None:
    """A response of unknown length is chunked, whole and in order."""
    response = site.get("/stream?lines=50000")
    assert response.status_code == 200
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.text == "".join(f"{number}\n" for number in range(50_000))


def test_stream_left_early(site: Site) -> None:
    """A client that has seen enough may leave; the next one is served."""
    with site.get("/stream?lines=1000000", stream=True) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(3)] == [b"0", b"1", b"2"]
    assert site.get("/visits").status_code == 200


def test_download(site: Site) -> None:
    """A file, with its name and length."""
    response = site.get("/download")
    assert response.content == PLANETS
    assert response.headers["Content-Length"] == str(len(PLANETS))
    assert "planets.csv" in response.headers["Content-Disposition"]


def test_head_of_a_download(site: Site) -> None:
    """HEAD says how long the file is and sends none of it."""
    with site.server.connect() as connection:
        connection.send(get("/download", "Host: localhost", method="HEAD"))
        response = connection.response("HEAD")
        if response.status == 200:
            assert response.value("Content-Length") == str(len(PLANETS))
        else:
            # Falcon has no HEAD where nobody wrote one.
            assert (site.name, response.status) == ("falcon", 405)
        connection.send(get("/visits", "Host: localhost"))
        assert connection.response().status == 200


def test_unmodified_download(site: Site) -> None:
    """A conditional request of a framework that has them: 304, and the connection goes on."""
    first = site.get("/download")
    if "ETag" not in first.headers and "Last-Modified" not in first.headers:
        assert site.name in ("falcon", "django")
        return
    conditions = {"If-None-Match": first.headers.get("ETag")}
    if conditions["If-None-Match"] is None:
        conditions = {"If-Modified-Since": first.headers["Last-Modified"]}
    for _ in range(2):
        response = site.get("/download", headers=conditions)
        assert response.status_code == 304
        assert response.content == b""
    assert site.get("/visits").status_code == 200


def test_part_of_a_download(site: Site) -> None:
    """A range of a framework that has them, through the file wrapper."""
    response = site.get("/download", headers={"Range": "bytes=10-19"})
    if site.name in ("flask", "bottle"):
        assert response.status_code == 206
        assert response.content == PLANETS[10:20]
    else:
        assert response.content == PLANETS


def test_not_found(site: Site) -> None:
    """The framework's own 404 comes through."""
    response = site.get("/no/such/page")
    assert response.status_code == 404
    assert site.get("/visits").status_code == 200


def test_method_not_allowed(site: Site) -> None:
    """And its 405, with Allow."""
    response = site.session.delete(f"{site.server.url}/download", timeout=PATIENCE)
    assert response.status_code in (403, 405)


def test_keep_alive(site: Site) -> None:
    """Twenty requests of all kinds need one connection."""
    with site.server.connect() as connection:
        for _ in range(5):
            for target in ("/visits", "/stream?lines=3", "/download", "/no/such/page"):
                connection.send(get(target, "Host: localhost"))
                response = connection.response()
                assert response.status == (404 if "page" in target else 200)
                assert not response.closes


def test_many_clients_at_once(site: Site) -> None:
    """Sixteen clients that each do a bit of everything get each their own answers."""

    def visit(number: int) -> list[Any]:
        with requests.Session() as session:
            own = Site(site.name, site.server, session)
            content = random.Random(number).randbytes(50_000 + number)
            uploaded = own.post("/upload", files={"file": ("x", content)}).json()
            visits = [own.get("/visits").json()["visits"] for _ in range(3)]
            lines = len(own.get(f"/stream?lines={number * 100}").content.splitlines())
            return [uploaded["sha256"] == hashlib.sha256(content).hexdigest(), visits, lines]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(visit, range(16)))
    assert results == [[True, [1, 2, 3], number * 100] for number in range(16)]


def test_body_over_the_limit(site: Site) -> None:
    """The limit in the example's serve.toml holds."""
    with site.server.connect() as connection:
        fields = ("Host: localhost", f"Content-Length: {(64 << 20) + 1}")
        connection.send(get("/upload", *fields, method="POST"))
        assert connection.response().status == 413


# Django's admin


@pytest.fixture
def admin(servers: dict[str, Server]) -> Iterator[Site]:
    """The Django example with a client that has logged in to the admin."""
    with requests.Session() as session:
        site = Site("django", servers["django"], session)
        page = site.get("/admin/login/?next=/admin/")
        assert page.status_code == 200
        response = log_in(site, page, PASSWORD)
        assert response.status_code == 200
        assert response.url == f"{site.server.url}/admin/"
        assert "Site administration" in response.text
        yield site


def token_of(page: requests.Response) -> str:
    """Return the hidden token of a form."""
    found = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def log_in(site: Site, page: requests.Response, password: str) -> requests.Response:
    """Fill in the admin's login form."""
    form = {
        "csrfmiddlewaretoken": token_of(page),
        "username": "admin",
        "password": password,
        "next": "/admin/",
    }
    return site.session.post(page.url, data=form, timeout=PATIENCE)


def test_admin_login(admin: Site) -> None:
    """The login works through the server, and so does what is behind it."""
    assert admin.get("/admin/auth/user/").status_code == 200
    listed = admin.get("/admin/notes/note/")
    assert listed.status_code == 200
    assert "Select note to change" in listed.text


def test_admin_login_refused(servers: dict[str, Server]) -> None:
    """A wrong password stays outside."""
    with requests.Session() as session:
        site = Site("django", servers["django"], session)
        page = site.get("/admin/login/?next=/admin/")
        response = log_in(site, page, "wrong")
        assert "Please enter the correct" in response.text
        assert site.get("/admin/notes/note/").url.startswith(f"{site.server.url}/admin/login/")


def test_admin_forged_form(servers: dict[str, Server]) -> None:
    """Without the token Django refuses, and the server delivers that."""
    with requests.Session() as session:
        site = Site("django", servers["django"], session)
        url = f"{site.server.url}/admin/login/"
        response = site.session.post(url, data={"username": "admin"}, timeout=PATIENCE)
        assert response.status_code == 403


def test_admin_adds_changes_and_deletes(admin: Site) -> None:
    """A note's whole life, by forms and redirects."""
    page = admin.get("/admin/notes/note/add/")
    form = {"csrfmiddlewaretoken": token_of(page), "name": "Ünïcode", "text": "first"}
    added = admin.session.post(page.url, data=form, timeout=PATIENCE)
    assert "was added successfully" in added.text
    found = re.search(r"/admin/notes/note/(\d+)/change/", added.text)
    assert found is not None
    page = admin.get(found[0])
    form = {"csrfmiddlewaretoken": token_of(page), "name": "Ünïcode", "text": "second"}
    changed = admin.session.post(page.url, data=form, timeout=PATIENCE)
    assert "was changed successfully" in changed.text
    page = admin.get(found[0].replace("change", "delete"))
    form = {"csrfmiddlewaretoken": token_of(page), "post": "yes"}
    deleted = admin.session.post(page.url, data=form, timeout=PATIENCE)
    assert "was deleted successfully" in deleted.text


def test_admin_static_files(servers: dict[str, Server]) -> None:
    """The admin looks as it should: its style sheet is served too."""
    with requests.Session() as session:
        response = session.get(
            f"{servers['django'].url}/static/admin/css/base.css", timeout=PATIENCE
        )
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/css")
        assert len(response.content) == int(response.headers["Content-Length"])


def test_django_reads_a_chunked_form(servers: dict[str, Server]) -> None:
    """A form in chunks, which Django reads only where its length is told."""
    body = b"name=chunky&text=x"
    with requests.Session() as session:
        site = Site("django", servers["django"], session)
        site.get("/")
        token = session.cookies["csrftoken"]
        with site.server.connect() as connection:
            head = get(
                "/form",
                "Host: localhost",
                "Transfer-Encoding: chunked",
                "Content-Type: application/x-www-form-urlencoded",
                f"X-CSRFToken: {token}",
                f"Cookie: csrftoken={token}",
                method="POST",
            )
            connection.send(head + chunked(body[:5], body[5:]))
            assert connection.response().json() == {"greeting": "Hello, chunky!"}
