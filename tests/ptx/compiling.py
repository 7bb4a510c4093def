"""NVRTC with the options that CuPy gives. What it makes is kept on disk, by its text, options and version."""

import hashlib
import os
from functools import cache
from pathlib import Path

AS_CUPY_ADDS = ("-ftz=true",)


class Compiler:
    """CUDA as PTX for one architecture, such as "90". folder: where programs are kept.

    compiled: how many programs NVRTC was asked for, the others lay in the folder.
    """

    def __init__(self, architecture, folder):
        from cuda.bindings import nvrtc

        self._nvrtc, self.architecture, self._folder, self.compiled = nvrtc, architecture, Path(folder), 0
        self.ptx = cache(self.ptx)

    def _checked(self, result):
        status, *values = result
        if status != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {status.name}")
        return values[0] if values else None

    def ptx(self, text, options):
        """The program's PTX. Raises RuntimeError with NVRTC's messages if it does not compile."""
        options = [*options, *AS_CUPY_ADDS, f"-arch=compute_{self.architecture}"]
        version = ".".join(map(str, self._nvrtc.nvrtcVersion()[1:]))
        kept = self._folder / hashlib.sha256("\0".join([text, *options, version]).encode()).hexdigest()
        if not kept.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(f".{os.getpid()}")
            new.write_text(self._compiled(text, options))
            new.rename(kept)
        return kept.read_text()

    def _compiled(self, text, options):
        nvrtc = self._nvrtc
        self.compiled += 1
        program = self._checked(nvrtc.nvrtcCreateProgram(text.encode(), b"program.cu", 0, [], []))
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * self._checked(nvrtc.nvrtcGetProgramLogSize(program))
            self._checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(log.decode())
        ptx = b" " * self._checked(nvrtc.nvrtcGetPTXSize(program))
        self._checked(nvrtc.nvrtcGetPTX(program, ptx))
        self._checked(nvrtc.nvrtcDestroyProgram(program))
        return ptx.decode().rstrip("\0")
