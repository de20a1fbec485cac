"""Run by Python at the start of every process that has this folder in its path: bad luck for image workers.

Owns nothing but the choice. Which misdeed it is, is said by `doubles`; everything else of the worker is real.
"""

from __future__ import annotations

import os
import sys

if "tidegate.workers.image" in sys.orig_argv:
    __import__(f"tests.chaos.{os.environ['TIDEGATE_TEST_DOUBLE']}")
