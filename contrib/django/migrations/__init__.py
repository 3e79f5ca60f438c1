"""Makes the tables: ``manage.py migrate qworker``."""
