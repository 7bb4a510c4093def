"""Which work on a device comes after which, as far as CUDA promises: by streams, events, the default stream, the host.

Work is put off until somebody waits for it, so that whatever is overwritten, freed or read too early shows.
"""

from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """Something given to a stream. reads, writes: the arrays that it is known to touch; launches tell by themselves."""

    act: Any
    reads: tuple = ()
    writes: tuple = ()


class Clock(dict):
    """What is over by some moment: by stream, the number of its last work."""

    def take(self, other):
        """What is over by another moment is over by this one, too."""
        for stream, number in other.items():
            self[stream] = max(self.get(stream, 0), number)


class Task(NamedTuple):
    """Work with its number, its stream, and what is over before it begins."""

    number: int
    stream: Any
    before: Clock
    work: Work


class Timeline:
    """All tasks of a device's streams, by number from 1 on.

    host: what the host has waited for. serial: the streams which CUDA orders around those of the default stream.
    """

    OUTSIDE = 1  # the number of work that nobody here gave: it is over before anything begins

    def __init__(self):
        self.host, self.default, self.serial = Clock(), None, []
        self._streams, self._count = np.zeros(1024, np.int32), 2  # by task, its stream's number; streams count from 1
        self._last = Clock()  # the whole of what has been given so far
        self.running: Task | None = None  # whose act is under way

    def now(self, stream):
        """What is over before what is given to this stream next."""
        clock = Clock(stream.clock)
        clock.take(self.host)
        for other in self.serial if stream is self.default else [self.default] if stream in self.serial else []:
            clock.take(other.clock)
        return clock

    def begin(self, stream, work):
        """The task for work that is given to a stream now."""
        number = self._count
        if number == len(self._streams):
            self._streams = np.concatenate([self._streams, np.zeros_like(self._streams)])
        self._streams[number], self._count = stream.number, number + 1
        self._last[stream] = number
        task = Task(number, stream, self.now(stream), work)
        stream.clock = Clock(task.before)
        stream.clock[stream] = number
        return task

    def late(self, clock, numbers):
        """The first of these tasks that is not over when all of a clock is, or None. numbers: an array."""
        under_way = [over for stream, last in self._last.items() if (over := clock.get(stream, 0)) < last]
        if not len(numbers) or numbers.max() <= max(self.OUTSIDE, min(under_way, default=self._count)):
            return None  # as after one stream's work nearly all is
        limits = np.zeros(1 + max(stream.number for stream in self._last), np.int64)
        limits[0] = self.OUTSIDE
        for stream, number in clock.items():
            limits[stream.number] = number
        late = numbers[limits[self._streams[numbers]] < numbers]
        return int(late[0]) if len(late) else None

    def stream_of(self, number):
        """The number of a task's stream."""
        return int(self._streams[number])

    def run(self, task, memory):
        """Do everything that comes before a task, then the task."""
        for stream, number in task.before.items():
            if stream is not task.stream:
                stream.drain(number)
        before, self.running = self.running, task
        try:
            memory.note(task, task.work.reads, task.work.writes)
            task.work.act()
        finally:
            self.running = before
