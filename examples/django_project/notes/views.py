"""The pages."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from django import forms
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST, require_safe

from notes.models import Note

FILES = Path(__file__).resolve().parent.parent / "files"


class NoteForm(forms.ModelForm):
    """What a visitor may enter."""

    class Meta:
        """Of a note."""

        model = Note
        fields = ("name", "text")


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """Show the forms and the latest notes."""
    context = {"form": NoteForm(), "notes": Note.objects.all()[:10]}
    return render(request, "notes/index.html", context)


@require_POST
def form(request: HttpRequest) -> HttpResponse:
    """Keep a note and greet its author."""
    entered = NoteForm(request.POST)
    if not entered.is_valid():
        return JsonResponse({"errors": entered.errors}, status=400)
    note = entered.save()
    return JsonResponse({"greeting": f"Hello, {note.name}!"})


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    """Describe an uploaded file, read piece by piece."""
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for piece in file.chunks():
        digest.update(piece)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest()})


@require_GET
def visits(request: HttpRequest) -> HttpResponse:
    """Count the visits of this session."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


@require_GET
def stream(request: HttpRequest) -> HttpResponseBase:
    """Send so many lines, each as soon as it is made."""
    lines = min(int(request.GET.get("lines", 10)), 1_000_000)

    def rows() -> Iterator[str]:
        for number in range(lines):
            yield f"{number}\n"

    return StreamingHttpResponse(rows(), content_type="text/plain")


@require_safe
def download(request: HttpRequest) -> HttpResponseBase:
    """Send a file; the server's file wrapper reads it."""
    return FileResponse((FILES / "planets.csv").open("rb"), as_attachment=True)
