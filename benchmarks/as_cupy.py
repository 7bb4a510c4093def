"""Compiles CUDA as CuPy lets NVRTC compile it, without CuPy and without a GPU: PTX, machine code, messages.

Needs the packages of pip install '.[cuda-ci]'.
"""

from typing import NamedTuple

ADDED = ("-ftz=true",)  # by CuPy to anybody's options


class Compiled(NamedTuple):
    """Holds what NVRTC makes of a program. code: b"" where none was asked for."""

    ptx: str
    code: bytes
    messages: str


def compiled(text, *options):
    """Return what NVRTC makes of a program. options: with `-arch=compute_90` PTX alone, with `-arch=sm_90` machine code
    too. Raises RuntimeError with NVRTC's messages if it does not compile."""
    from cuda.bindings import nvrtc

    def checked(result):
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {status.name}")
        return values[0] if values else None

    def filled(size, get):
        room = b" " * checked(size(program))
        if room:
            checked(get(program, room))
        return room

    options = [option.encode() for option in (*options, *ADDED)]
    program = checked(nvrtc.nvrtcCreateProgram(text.encode(), b"program.cu", 0, [], []))
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        messages = filled(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode().rstrip("\0 \n")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {status.name}: {messages}")
        ptx = filled(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).decode().rstrip("\0")
        return Compiled(ptx, filled(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), messages)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def version():
    """Return NVRTC's version, such as "13.5"."""
    from cuda.bindings import nvrtc

    return ".".join(map(str, nvrtc.nvrtcVersion()[1:]))
