"""What tests compile, kept on disk for other workers and for sessions to come, for a month after their last use."""

import fcntl
import os
import time
from contextlib import suppress
from hashlib import sha256

AGE = 30 * 86_400  # seconds


def kept(folder, deciding, make):
    """The path of a file that is decided by these texts; of processes that need it, the first calls make(path)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / sha256("\0".join(deciding).encode()).hexdigest()
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}")
            make(new)
            new.rename(path)
            for other in folder.iterdir():
                with suppress(FileNotFoundError):  # another process removes it, too
                    if time.time() - other.stat().st_mtime > AGE:
                        other.unlink()
        os.utime(path)  # what is in use is not old
    return path
