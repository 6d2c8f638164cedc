"""What holds for all tests of this folder."""

from __future__ import annotations

from hypothesis import settings

from tests.examples import examples

# Two cores, often busy with a second lane of checks: how long one example takes says nothing about
# the code. Everything else stays as Hypothesis has it, its deterministic profile for CI included.
settings.register_profile(
    "vpnd",
    parent=settings(),
    deadline=None,
    print_blob=True,
    max_examples=examples(settings().max_examples),
)
settings.load_profile("vpnd")
