"""The App of a Django project: ``qworker start --app worker.contrib.django.service``.

A process of qworker imports what ``--app`` names and nothing before. Here Django is set up first,
by DJANGO_SETTINGS_MODULE; then ``settings.QWORKER_APP`` (``"bank.events"``, or with the name of
the attribute ``"bank.events:app"``) is imported, whose handlers may use models. ``manage.py
qworker`` names this module; a project can have one of its own, which calls ``django.setup()``.
"""

from __future__ import annotations

from importlib import import_module

import django
from django.conf import settings

from worker import App, ConfigurationError

_SETTING = "QWORKER_APP"

django.setup()
_named = getattr(settings, _SETTING, "")
if not _named:
    raise ConfigurationError(
        f"Django's settings have no {_SETTING}: say which module has the App, as in"
        f' {_SETTING} = "bank.events"'
    )
_module, _, _attribute = _named.partition(":")
try:
    _imported = import_module(_module)
except ModuleNotFoundError as _error:
    if not f"{_module}.".startswith(f"{_error.name}."):  # the module is there, and misses another
        raise
    raise ConfigurationError(
        f"Django's settings: {_SETTING} = {_named!r}: there is no module {_error.name!r}"
    ) from None
app = getattr(_imported, _attribute or "app", None)
if not isinstance(app, App):
    raise ConfigurationError(
        f"Django's settings: {_SETTING} = {_named!r}: {_module} has no App named"
        f" {_attribute or 'app'!r}"
    )
