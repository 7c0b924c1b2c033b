"""Jobs: threads for what may last, so that nobody else has to wait for it.

Invariant: a job is begun at once as long as there are fewer than MAX_THREADS; one that never ends
keeps its thread and nothing else. What a job raises is reported and ends the job alone.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

MAX_THREADS = 640
SPARE_JOBS = 4


def _safely(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:
        traceback.print_exc(file=sys.stderr)


class Jobs:
    """`guard` is for those who have more to count as well."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.job_threads = 0
        self.jobs_idle = 0
        self.closed = False

    def later(self, job: Callable[[], None]) -> None:
        """Has some other thread do this, which may last."""
        with self.guard:
            if self.closed:
                threading.Thread(target=_safely, args=(job,), name="job", daemon=True).start()
                return
            if self.jobs_idle:
                self.jobs_idle -= 1
            elif self.job_threads < MAX_THREADS:
                self.job_threads += 1
                threading.Thread(target=self.do_jobs, name="job", daemon=True).start()
        self.jobs.put(lambda: _safely(job))

    def close(self) -> None:
        """Lets the threads go, each when it is done; what is asked for later gets its own."""
        with self.guard:
            self.closed = True
            for _ in range(self.job_threads):
                self.jobs.put(None)

    def do_jobs(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            job()
            with self.guard:
                if self.closed and self.jobs.empty():
                    return
                if self.jobs_idle >= SPARE_JOBS and self.jobs.empty():
                    self.job_threads -= 1
                    return
                self.jobs_idle += 1
