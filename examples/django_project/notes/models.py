"""What is kept."""

from django.db import models


class Note(models.Model):
    """A short text."""

    name = models.CharField(max_length=100)
    text = models.TextField(blank=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        """The newest first."""

        ordering = ("-created", "-pk")

    def __str__(self) -> str:
        """Return what the admin lists."""
        return self.name
