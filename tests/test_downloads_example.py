"""The example of files: public ones that the core answers, and those behind the application."""

import re

import pytest

from serving import REPOSITORY, Server, Servers
from wire import get

FOLDER = REPOSITORY / "examples" / "downloads"
PLANETS = (FOLDER / "private" / "planets.csv").read_bytes()


@pytest.fixture(scope="module")
def site(serve_module: Servers) -> Server:
    """The example, served as it stands."""
    return serve_module(config_file=FOLDER / "serve.toml", environment={"DOWNLOAD_KEY": "open"})


def test_page_leads_to_the_files(site: Server) -> None:
    page = site.exchange(get("/"))
    assert page.status == 200
    links = re.findall(r'href="([^"]+)"', page.body.decode())
    assert links == ["static/style.css", "download/planets.csv?key=open"]
    for link in links:
        assert site.exchange(get(f"/{link}")).status == 200


def test_public_file(site: Server) -> None:
    response = site.exchange(get("/static/style.css"))
    assert response.body == (FOLDER / "public" / "style.css").read_bytes()
    assert response.value("Content-Type") == "text/css; charset=utf-8"
    assert response.value("Cache-Control") == "public, max-age=3600"
    tag = response.value("ETag")
    assert site.exchange(get("/static/style.css", f"If-None-Match: {tag}")).status == 304


def test_private_file(site: Server) -> None:
    response = site.exchange(get("/download/planets.csv?key=open"))
    assert response.body == PLANETS
    assert response.framing == "content-length"
    assert response.value("Content-Disposition") == 'attachment; filename="planets.csv"'


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/download/planets.csv", 403),
        ("/download/planets.csv?key=shut", 403),
        ("/download/none?key=open", 404),
        ("/download/../application.py?key=open", 404),
        ("/download/..%2fapplication.py?key=open", 404),
        ("/static/../private/planets.csv", 404),
        ("/static/%2e%2e/private/planets.csv", 404),
        ("/private/planets.csv", 404),
    ],
)
def test_what_nobody_gets(site: Server, target: str, status: int) -> None:
    response = site.exchange(get(target))
    assert response.status == status
    assert PLANETS not in response.body
