"""Chaos: real servers with real workers, struck at seeded moments, judged by what comes out.

`python -m tests.chaos --faults N --seed S` is the storm, `python -m tests.chaos.soak` the long quiet run. The
tests in this folder are the cases that a storm meets too seldom, and samples of both.
"""
