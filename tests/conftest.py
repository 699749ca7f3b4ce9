"""Settings for all tests: Hypothesis does not fail an example because the machine is busy."""

from hypothesis import settings

settings.register_profile("respkv", deadline=None)
settings.load_profile("respkv")
