"""Compiled code on disk.

Numba's own cache watches one source file only, raises on damaged files and unwritable directories, and lets two
processes that compile at once overwrite each other's entries. Here every entry is a file of its own whose name hashes
all that decides the code: the sources under kernels/, the versions, the CPU, function and signature.
"""

import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import llvmlite
import numba
from numba.core import compiler
from numba.core.caching import _Cache
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from .. import LOADED, sources

PACKAGE = __package__.rpartition(".")[0]  # this copy of kernels/, whatever it is called
log = logging.getLogger("fastadam")


ENTRY = 2**18  # bytes: as large as entries are
failures: list[str] = []  # what this process compiled and could not keep, and why
HARMLESS = ("NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CACHE_DIR")  # decide nothing about the code


@cache
def stamp() -> str:
    """A hash of every source file under kernels/ and of what compiles them."""
    options = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k not in HARMLESS)
    return repr((LOADED, sys.version, numba.__version__, llvmlite.__version__, options))


def as_written() -> bool:
    """Whether the kernels' modules came from the texts on disk.

    Python takes their bytecode for current by date and size, which a change within the second may keep.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGE):
            loader: Any = module.__spec__.loader  # type: ignore[union-attr]
            path = str(module.__file__)
            if loader.get_code(name) != loader.source_to_code(loader.get_data(path), path):
                return False
    return True


def directory() -> Path | None:
    """Where entries lie: $FASTADAM_CACHE_DIR, else the user's cache directory. None with $FASTADAM_CACHE=0, or where
    there is no home to hold one."""
    if os.environ.get("FASTADAM_CACHE") == "0":
        return None
    if chosen := os.environ.get("FASTADAM_CACHE_DIR"):
        return _absolute(chosen)
    usual = Path(AppDirs("fastadam", appauthor=False).user_cache_dir)
    return usual if usual.is_absolute() else None


@cache
def _absolute(chosen: str) -> Path:
    """Settled at first use: a later change of directory moves nothing."""
    return Path(os.path.abspath(os.path.expanduser(chosen)))


def _private(path: Path) -> bool:
    """Entries are pickles, which run code when read: trust only what nobody but root and this user may write."""
    if not hasattr(os, "getuid"):
        return True
    info = path.stat()
    return info.st_uid in (os.getuid(), 0) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def keep(dispatcher: Any, name: str) -> Any:
    """A Numba dispatcher whose code is kept on disk. Nothing else may bear this name."""
    dispatcher._cache = DiskCache(name)
    return dispatcher


def state(root: Path) -> str:
    """ "writable", or why entries cannot be kept there."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root) as file:  # an empty file fits on a full disk
            file.write(bytes(ENTRY))
        return "writable" if _private(root) else "not used: others may write there"
    except OSError as error:
        return f"not writable ({error.strerror})"


class DiskCache(_Cache):
    """What a Numba dispatcher asks of a cache, for one function. No fault of the disk ever reaches the caller."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started: dict[Any, float] = {}

    @property
    def cache_path(self) -> str:
        return str(directory())

    def _path(self, signature: Any, target: Any) -> Path | None:
        root = directory()
        if root is None:
            return None
        key = repr((self._name, signature, target.codegen().magic_tuple(), stamp()))
        return root / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code of one signature, or None: then Numba compiles it."""
        self._started[sig] = perf_counter()
        try:
            path = self._path(sig, target_context)
            if path is None or not path.exists():
                return None
            if not (_private(path) and _private(path.parent)):
                raise PermissionError("others may write there")
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                raise ValueError("the checksum is wrong")
            # Numba would refresh its context: 0.3 s to import whatever could be compiled, SciPy included. Code that is
            # compiled already needs Numba's run time only.
            rtsys.initialize(target_context)
            code = compiler.CompileResult._rebuild(target_context, *pickle.loads(data[32:]))
        except Exception as error:  # whatever a damaged file or disk brings: compiling again is always right
            log.debug("%s: cached code of %s not used: %r", self._name, sig, error)
            return None
        log.debug("%s loaded for %s in %.3f s", self._name, sig, perf_counter() - self._started.pop(sig))
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was just compiled; a file appears whole or not at all."""
        took = perf_counter() - self._started.pop(sig, perf_counter())
        log.debug("%s compiled for %s in %.3f s", self._name, sig, took)
        temporary = None
        try:
            path = self._path(sig, data.target_context)
            if path is None or data.library.has_dynamic_globals:
                return
            if sources() != LOADED or not as_written():
                raise RuntimeError("a source file has changed since it was imported")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _private(path.parent):
                raise PermissionError("others may write there")
            payload = dumps(data._reduce())
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                temporary = file.name
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
            temporary = None
        except Exception as error:
            log.debug("%s: compiled code of %s not kept: %r", self._name, sig, error)
            failures.append(f"{self._name}: {str(error) or repr(error)}")
        finally:  # Ctrl-C included
            if temporary is not None:
                with suppress(OSError):
                    Path(temporary).unlink()

    def enable(self) -> None:
        """Always on; $FASTADAM_CACHE=0 turns it off."""

    disable = flush = enable
