"""How Hypothesis runs here: no deadline, for a shared machine's pauses are no failures."""

from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("core")
