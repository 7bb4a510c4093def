"""Compiles functions by Numba, and keeps their code on disk.

Numba's own cache watches one source file only, raises on damaged files and unwritable directories, and lets two
processes compile the same at once. Here every entry is a file of its own whose name hashes all that decides the code:
the sources under kernels/, the versions, the CPU, function and signature; and one process at a time compiles it.
"""

import hashlib
import logging
import os
import pickle
import re
import stat
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple

import llvmlite
import numba
from numba.core import compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from .. import LOADED, hashed, sources
from .claims import claimed, lock

PACKAGE = __package__.rpartition(".")[0]  # this copy of kernels/, whatever it is called
log = logging.getLogger("fastadam")

ENTRY = 2**17  # bytes: as large as entries are
LIMIT = 64 * 2**20  # bytes: as large as all entries of this version may become
AGE = 30 * 86_400  # seconds: as old as entries of other versions may become since they were last loaded
NAME = re.compile(r"[a-z_]+[0-9]*-[0-9a-f]{8}-[0-9a-f]{32}(\.bin|\.claim|.*\.part)")  # what this file alone writes
SLOW = 0.5  # seconds of compiling until the log says so
failures: list[str] = []  # what this process compiled and could not keep, and why
HARMLESS = ("NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CACHE_DIR")  # decide nothing about the code


@cache
def stamp() -> str:
    """Return a hash of every source file under kernels/ and of what compiles them."""
    options = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k not in HARMLESS)
    return repr((LOADED, sys.version, numba.__version__, llvmlite.__version__, options))


def as_written() -> bool:
    """Return whether the kernels' modules came from the texts on disk.

    Python takes their bytecode for current by date and size, which a change within the second may keep.
    """
    return all(_is_as_written(name) for name in list(sys.modules) if name.startswith(PACKAGE))


@cache
def _is_as_written(name: str) -> bool:
    """Look once a process, and return whether modules are as their texts are: all modules take 50 ms, and `sources`
    shows whether a text has changed since."""
    module = sys.modules[name]
    loader: Any = module.__spec__.loader  # type: ignore[union-attr]
    path = str(module.__file__)
    return bool(loader.get_code(name) == loader.source_to_code(loader.get_data(path), path))


def directory() -> Path | None:
    """Return where entries lie: $FASTADAM_CACHE_DIR, else the user's cache directory. None with $FASTADAM_CACHE=0, or
    where there is no home to hold one."""
    if os.environ.get("FASTADAM_CACHE") == "0":
        return None
    if chosen := os.environ.get("FASTADAM_CACHE_DIR"):
        return _absolute(chosen)
    usual = Path(AppDirs("fastadam", appauthor=False).user_cache_dir)
    return usual if usual.is_absolute() else None


@cache
def _absolute(chosen: str) -> Path:
    """Return an absolute path, settled at first use: a later change of directory moves nothing."""
    return Path(os.path.abspath(os.path.expanduser(chosen)))


def _private(path: Path) -> bool:
    """Return whether nobody but root and this user may write there: entries are pickles, which run code when read."""
    if not hasattr(os, "getuid"):
        return True
    info = path.stat()
    return info.st_uid in (os.getuid(), 0) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class Code(NamedTuple):
    """Is the compiled code of one function."""

    result: Any  # Numba's, which must live as long as the code is called

    @property
    def entry_point(self) -> Any:
        """Return the function, called from Python with arguments of just the types that it was compiled for.

        Without a dispatcher's look at every argument, a step over 2^10 parameters takes 0.8 µs, not 1.8.
        """
        return self.result.entry_point

    @property
    def address(self) -> int:
        """Return where the C function begins."""
        address: int = self.result.library.get_pointer_to_function(self.result.fndesc.llvm_cfunc_wrapper_name)
        return address

    @property
    def assembly(self) -> str:
        """Return what was compiled; code from the disk has no text."""
        return self.result.library.get_asm_str()  # type: ignore[no-any-return]


def native(name: str, function: Any, signature: Any, of: str = "", for_c: bool = False, nogil: bool = True) -> Code:
    """Return the compiled code of a function, loaded or compiled now.

    signature: Numba's, of its result and arguments. name and `of` tell it from all others. for_c: callable from C, by
    address; else from Python, and then `nogil` says whether it lets other threads of Python run.
    """
    path = _path(name, signature, of)
    with global_compiler_lock:
        result = _load(path, name, of)
    if result is None:
        _registered().wait()  # for a thread that takes the same lock
        with global_compiler_lock, claimed(path):
            result = _load(path, name, of) or _compile(path, name, of, function, signature, for_c, nogil)
    return Code(result)


def _path(name: str, signature: Any, of: str) -> Path | None:
    root = directory()
    if root is None:
        return None
    key = repr((name, signature, of, cpu_target.target_context.codegen().magic_tuple(), stamp()))
    return root / f"{name}-{_hash(stamp())[:8]}-{_hash(key)[:32]}.bin"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _load(path: Path | None, name: str, of: str) -> Any:
    """Return the compiled code in a file, or None. No fault of the disk ever reaches the caller."""
    began = perf_counter()
    try:
        if path is None or not path.exists():
            return None
        if not (_private(path) and _private(path.parent)):
            raise PermissionError("others may write there")
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise ValueError("the checksum is wrong")
        # Numba would refresh its context: 0.3 s to import whatever could be compiled, SciPy included, and to compile
        # its run time, of which there is nothing in this code.
        result = compiler.CompileResult._rebuild(cpu_target.target_context, *pickle.loads(data[32:]))
    except Exception as error:  # whatever a damaged file or disk brings: compiling again is always right
        log.debug("%s: cached code for %s not used: %r", name, of, error)
        return None
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > AGE / 30:
            os.utime(path)  # what is in use is not old
    log.debug("%s loaded for %s in %.3f s", name, of or "all", perf_counter() - began)
    return result


@cache
def _registered() -> Event:
    """Set when Numba has registered all that it can compile, for which a thread takes half a second.

    No signal's handler runs there: half registered, as after Ctrl-C, Numba compiles nothing until the process ends.
    """
    done = Event()  # Thread.join, once interrupted, takes a thread for ended

    def register() -> None:
        try:
            with global_compiler_lock:
                cpu_target.target_context.refresh()
        finally:
            done.set()

    try:
        Thread(target=register).start()
    except RuntimeError:  # there may be no more threads, as at Python's end: then whoever compiles registers
        done.set()
    return done


_spent = 0.0  # seconds that this process has compiled; infinity once the log has said so


def _compile(
    path: Path | None, name: str, of: str, function: Any, signature: Any, for_c: bool, nogil: bool
) -> Any:  # fmt: skip
    """Compile a function and keep its code."""
    global _spent
    began = perf_counter()
    flags: Any = compiler.Flags()
    # Any other error model tests each division for zero; and no object of Numba's run time is counted by reference.
    options = {"nopython": True, "error_model": "numpy", "nogil": nogil, "_nrt": False}
    cpu_target.options.parse_as_flags(flags, options)
    flags.no_cpython_wrapper, flags.no_cfunc_wrapper = for_c, not for_c
    result = compiler.compile_extra(
        cpu_target.typing_context, cpu_target.target_context, function, signature.args, signature.return_type, flags, {}
    )
    took = perf_counter() - began
    log.debug("%s compiled for %s in %.3f s", name, of or "all", took)
    _spent += took
    if SLOW < _spent < float("inf"):
        log.info(
            "compiling has taken %.1f s so far, now of %s%s. The code is kept %s. `python -m fastadam warmup` compiles "
            "ahead; $FASTADAM_CACHE_DIR says where code is kept",
            _spent, name, of and f" for {of}", f"in {path.parent} for later processes" if path else "nowhere",
        )  # fmt: skip
        _spent = float("inf")
    if path is not None and not result.library.has_dynamic_globals:
        _keep(path, name, of, result)
    return result


def _keep(path: Path, name: str, of: str, result: Any) -> None:
    """Write compiled code to a file, which appears whole or not at all."""
    temporary = None
    try:
        if hashed(sources()) != LOADED or not as_written():
            raise RuntimeError("a source file has changed since it was imported")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _private(path.parent):
            raise PermissionError("others may write there")
        payload = dumps(result._replace(type_annotation="")._reduce())  # that would be text, two thirds of an entry
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(payload).digest() + payload)
        os.replace(temporary, path)
        temporary = None
        _sweep(path.parent)
    except Exception as error:
        log.debug("%s: compiled code for %s not kept: %r", name, of, error)
        failures.append(f"{name}: {str(error) or repr(error)}")
    finally:  # Ctrl-C included
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()


@cache
def _sweep(root: Path) -> None:
    """Remove, once a process, entries not loaded for long, and of this version's the oldest beyond LIMIT."""
    folder = -1
    with suppress(OSError):  # another process may be at it
        folder = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
        lock(folder)
        _remove_old(root)
    if folder >= 0:
        os.close(folder)


def _remove_old(root: Path) -> None:
    stamp_now, now, entries = f"-{_hash(stamp())[:8]}-", time.time(), []
    for path in root.iterdir():
        with suppress(OSError):
            info = path.lstat()
            if NAME.fullmatch(path.name) is None or not stat.S_ISREG(info.st_mode):
                continue  # a user's, who has chosen a directory that holds more
            if path.suffix == ".bin" and stamp_now in path.name:
                entries.append((info.st_mtime, info.st_size, path))
            elif now - info.st_mtime > AGE:
                path.unlink()
    size = sum(size for _, size, _ in entries)
    for _, each, path in sorted(entries):
        if size <= LIMIT:
            break
        with suppress(OSError):
            path.unlink()
            size -= each


def state(root: Path) -> str:
    """Return "writable", or why entries cannot be kept there."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root) as file:  # an empty file fits on a full disk
            file.write(bytes(ENTRY))
        return "writable" if _private(root) else "not used: others may write there"
    except OSError as error:
        return f"not writable ({error.strerror})"
