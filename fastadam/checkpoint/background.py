"""Lets a save go on in a thread."""

import threading
from collections.abc import Callable

from fastadam.checkpoint.disk import log


class Handle:
    """Is a save that goes on in the background. The process does not end before it has.

    done: whether it has ended, well or not.

    >>> folder = fa.checkpoint.Folder("run7")
    >>> handle = folder.save(fa.Adam(np.ones(3, np.float32)), background=True)
    >>> _ = handle.wait()
    >>> handle.done
    True
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._error = work, None
        self._told = False
        self._thread = threading.Thread(target=self._run, name="fastadam checkpoint")
        self._thread.start()

    _error: BaseException | None

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
            log.error("a checkpoint was not saved: %s: %s", type(error).__name__, error)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> None:
        """Return once the checkpoint is on disk. Raises what saving it raised; TimeoutError after so many seconds."""
        self._thread.join(timeout)
        if not self.done:
            raise TimeoutError(f"the checkpoint was not on disk after {timeout} s")
        self._told = True
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Return once it has ended; say again in the log what went wrong if nobody has asked for it."""
        self._thread.join()
        if self._error is not None and not self._told:
            log.error("the checkpoint before was not saved: %s: %s", type(self._error).__name__, self._error)
            self._told = True
