"""As few settings as Django takes. DJANGO_SETTINGS_MODULE=examples.bank.finance.settings"""

import os
from typing import Any
from urllib.parse import urlsplit

_database = urlsplit(os.environ.get("FINANCE_DATABASE", "sqlite:///finance.db"))
if _database.scheme == "sqlite":
    _default: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3"}
else:
    _default = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _database.hostname,
        "PORT": _database.port,
        "USER": _database.username,
        "PASSWORD": _database.password,
    }
DATABASES = {"default": {**_default, "NAME": _database.path[1:]}}

INSTALLED_APPS = ["worker.contrib.django", "examples.bank.finance"]
QWORKER_APP = "examples.bank.finance.views"
ROOT_URLCONF = "examples.bank.finance.views"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
SECRET_KEY = "for an example"  # noqa: S105 - it signs nothing
