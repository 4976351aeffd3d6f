"""A small Django application: one view, no database.

CommonMiddleware is the one that gives the response its Content-Length, in every project that
`startproject` makes; without it a server can only frame the reply by chunks or by closing.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use: nothing here is signed",
)


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Hello, World!")


urlpatterns = [path("", hello)]
app = get_wsgi_application()
