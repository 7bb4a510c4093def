"""What tests compile, kept on disk for other workers and for sessions to come."""

import fcntl
import os
from hashlib import sha256


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
    return path
