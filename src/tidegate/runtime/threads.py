"""Threads: the named places where blocking work is done, so that the event loop never waits.

Owns the executors. One worker each where order matters. `processes` starts children and must live as long as
they do: the kernel ends a child whose starting *thread* ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
# Endings wait for processes that may take seconds to die, one by one; more at once than this is a shutdown.
_ENDINGS_COUNT: Final = 4


class Threads:
    """The executors of one server."""

    def __init__(self) -> None:
        self.files = ThreadPoolExecutor(1, thread_name_prefix="tidegate-files")
        self.pictures = ThreadPoolExecutor(1, thread_name_prefix="tidegate-pictures")
        self.filing = ThreadPoolExecutor(1, thread_name_prefix="tidegate-filing")
        self.prefetch = ThreadPoolExecutor(1, thread_name_prefix="tidegate-prefetch")
        self.endings = ThreadPoolExecutor(_ENDINGS_COUNT, thread_name_prefix="tidegate-endings")
        self.processes = ThreadPoolExecutor(1, thread_name_prefix="tidegate-processes")

    def close(self) -> None:
        """Wait for what is being done; children must have ended before."""
        for executor in (self.prefetch, self.pictures, self.filing, self.files, self.endings, self.processes):
            executor.shutdown(wait=True, cancel_futures=True)


async def on(
    executor: ThreadPoolExecutor, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """Do blocking work on a named thread and await its result."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(executor, lambda: work(*args, **kwargs))
