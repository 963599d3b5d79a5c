"""How Hypothesis runs here: no deadline, for a shared machine's pauses are no failures.

`HYPOTHESIS_PROFILE=long` takes minutes a test instead of a second.
"""

import os

from hypothesis import settings

settings.register_profile("core", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("long", settings.get_profile("core"), max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "core"))
