"""Request targets that tell applications/scripted.py what to do."""

import json
from typing import Any
from urllib.parse import quote


def script(path: str = "/", **spec: Any) -> str:
    """Return a request target; the keywords are those of applications/scripted.py."""
    return f"{path}?{quote(json.dumps(spec), safe='')}"
