"""The table of media types in src/core/media_types.zig against the one that Python keeps."""

import mimetypes
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "core" / "media_types.zig"

# Where Python's table is older than IANA's, or than what every browser has: ours, and why.
OTHERWISE = {
    "3g2": "video/3gpp2",  # most are films (RFC 4393)
    "3gp": "video/3gpp",  # the same (RFC 3839)
    "aif": "audio/aiff",
    "aiff": "audio/aiff",
    "bat": "text/plain",
    "js": "text/javascript",  # RFC 9239; Python 3.12 has it too
    "mjs": "text/javascript",
    "obj": "model/obj",  # a 3D model on the web, an object file in a compiler's folder
    "rdf": "application/rdf+xml",  # RFC 3870
    "rtf": "application/rtf",
    "vcf": "text/vcard",  # RFC 6350
    "wav": "audio/wav",
}


def table() -> dict[str, str]:
    """Read the table out of the source."""
    text = SOURCE.read_text("utf-8").replace(
        'office ++ "', '"application/vnd.openxmlformats-officedocument.'
    )
    rows = re.findall(r'^    \.\{ "([^"]+)", "([^"]+)" \},$', text, re.MULTILINE)
    found = dict(rows)
    assert len(found) == len(rows), "an extension stands twice"
    return found


def test_table_is_found_whole() -> None:
    found = table()
    assert len(found) > 150
    assert found["docx"].endswith("officedocument.wordprocessingml.document")


@pytest.mark.parametrize(("extension", "media_type"), table().items())
def test_type_agrees_with_python(extension: str, media_type: str) -> None:
    assert re.fullmatch("[a-z0-9]+", extension)
    assert re.fullmatch(r"[a-z]+/[a-z0-9][a-z0-9.+-]*", media_type)
    if extension in OTHERWISE:
        assert media_type == OTHERWISE[extension]
        return
    # The defaults of the module, without the files of the machine.
    known = mimetypes.MimeTypes().types_map[True].get(f".{extension}")
    if known is not None:
        assert media_type == known


def test_types_of_the_web_are_all_there() -> None:
    """What a site is made of, whatever Python thinks of it."""
    wanted = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "json": "application/json",
        "map": "application/json",
        "svg": "image/svg+xml",
        "png": "image/png",
        "jpg": "image/jpeg",
        "webp": "image/webp",
        "avif": "image/avif",
        "ico": "image/vnd.microsoft.icon",
        "woff": "font/woff",
        "woff2": "font/woff2",
        "ttf": "font/ttf",
        "wasm": "application/wasm",
        "webmanifest": "application/manifest+json",
        "txt": "text/plain",
        "xml": "text/xml",
        "pdf": "application/pdf",
        "mp4": "video/mp4",
        "webm": "video/webm",
        "mp3": "audio/mpeg",
    }
    found = table()
    assert {name: found.get(name) for name in wanted} == wanted
