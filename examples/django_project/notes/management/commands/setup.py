"""`manage.py setup`: the database and a superuser, in one command that may be repeated."""

import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    """Creates or migrates the database and creates or updates a superuser."""

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the name and the password."""
        parser.add_argument("--username", default="admin")
        parser.add_argument("--password", help="made up and printed when missing")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it."""
        call_command("migrate", interactive=False, verbosity=options["verbosity"])
        password = options["password"] or secrets.token_urlsafe(12)
        user, created = get_user_model().objects.get_or_create(
            username=options["username"], defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(password)
        user.save()
        what = "created" if created else "has a new password"
        self.stdout.write(f"the user {user.get_username()} {what}")
        if not options["password"]:
            self.stdout.write(f"password: {password}")
