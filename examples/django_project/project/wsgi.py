"""The WSGI application; it serves the admin's static files too, for want of a web server."""

import os
from typing import Any

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.contrib.staticfiles.views import serve
from django.core.wsgi import get_wsgi_application


class StaticFiles(StaticFilesHandler):
    """Serves static files also when DEBUG is off."""

    def serve(self, request: Any) -> Any:
        """Answer with the file that the path names."""
        return serve(request, self.file_path(request.path), insecure=True)


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = StaticFiles(get_wsgi_application())
