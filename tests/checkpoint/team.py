"""Ranks as threads of one process."""

import threading


def together(size, work):
    """work(rank, gather) in `size` threads; what each returns, or the exception it raised."""
    barrier, said, results = threading.Barrier(size), [None] * size, [None] * size

    def run(rank):
        def gather(x):
            said[rank] = x
            barrier.wait()
            everyone = list(said)
            barrier.wait()
            return everyone

        try:
            results[rank] = work(rank, gather)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
