"""The line in front of a server: who goes next."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from sim.job import WAITING, Job


class FifoLine:
    """Waiting jobs in order of arrival. Cancelled ones stay until they reach the head."""

    __slots__ = ("_jobs",)

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def push(self, job: Job) -> None:
        """Join the end of the line."""
        self._jobs.append(job)

    def head(self) -> Job | None:
        """The job that goes next, still in line; None when nobody waits."""
        jobs = self._jobs
        while jobs:
            if jobs[0].status == WAITING:
                return jobs[0]
            jobs.popleft()
        return None

    def pop(self) -> None:
        """Remove the head."""
        self._jobs.popleft()


class PriorityLine:
    """Waiting jobs by (priority, order of arrival), smaller first."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Job]] = []
        self._order = 0

    def push(self, job: Job) -> None:
        """Join behind all jobs of the same priority."""
        self._order += 1
        heappush(self._heap, (job.priority, self._order, job))

    def head(self) -> Job | None:
        """The job that goes next, still in line; None when nobody waits."""
        heap = self._heap
        while heap:
            if heap[0][2].status == WAITING:
                return heap[0][2]
            heappop(heap)
        return None

    def pop(self) -> None:
        """Remove the head."""
        heappop(self._heap)


DISCIPLINES: dict[str, type[FifoLine] | type[PriorityLine]] = {"fifo": FifoLine, "priority": PriorityLine}
