"""What ``INSTALLED_APPS`` gets by the name of this package."""

from __future__ import annotations

from django.apps import AppConfig


class QworkerConfig(AppConfig):
    """The tables and the commands of qworker."""

    name = "worker.contrib.django"
    label = "qworker"
    verbose_name = "qworker"
    # A project's own setting would ask it for migrations of this app.
    default_auto_field = "django.db.models.BigAutoField"
