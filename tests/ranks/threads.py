"""Ranks as threads of one process, for all that does not depend on who carries the bytes."""

import threading
from queue import SimpleQueue

import numpy as np

from fastadam.distributed import Engine

TIMEOUT = 60


class Room:
    """Where the threads of one team meet."""

    def __init__(self, size):
        self.barrier, self.said = threading.Barrier(size, timeout=TIMEOUT), [None] * size
        self.queues = {(a, b): SimpleQueue() for a in range(size) for b in range(size)}
        self.carried = 0  # bytes


class Thread(Engine):
    """Is one rank of a team of threads."""

    def __init__(self, room, rank, size):
        self._room, self.rank, self.size = room, rank, size

    def swap(self, sends, receives):
        assert len(sends) == len(receives) == self.size
        for k, part in enumerate(sends):
            if part is not None and part.size:
                assert k != self.rank
                self._room.carried += part.nbytes
                self._room.queues[self.rank, k].put(part.copy())

        def wait():
            for k, part in enumerate(receives):
                if part is not None and part.size:
                    part[...] = self._room.queues[k, self.rank].get(timeout=TIMEOUT)

        return wait

    def reduce(self, parts, total):
        everyone = self.everyone([np.array(x) for x in parts])
        total[...] = sum(parts[self.rank] for parts in everyone[::-1])
        return lambda: None

    def everyone(self, x):
        self._room.said[self.rank] = x
        self._room.barrier.wait()
        everyone = list(self._room.said)
        self._room.barrier.wait()
        return everyone


def together(size, work):
    """work(engine) in `size` threads; what each returns. Raises the first rank's exception that is its own."""
    room, results, errors = Room(size), [None] * size, [None] * size

    def run(rank):
        try:
            results[rank] = work(Thread(room, rank, size))
        except BaseException as error:
            errors[rank] = error
            room.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [error for error in errors if error is not None]
    if raised:
        raise next((e for e in raised if not isinstance(e, threading.BrokenBarrierError)), raised[0])
    return results


def refused(size, work):
    """What work(engine) raises on each rank: all of them must."""

    def run(engine):
        try:
            work(engine)
        except Exception as error:
            return error
        return None

    return together(size, run)
