"""Thin launchers of the roles: `python -m workers.worker TARGET`. Imported by nothing."""
