"""Notes in the admin."""

from django.contrib import admin

from notes.models import Note


@admin.register(Note)
class NoteAdmin(admin.ModelAdmin):
    """A list with a search field."""

    list_display = ("name", "created")
    search_fields = ("name", "text")
