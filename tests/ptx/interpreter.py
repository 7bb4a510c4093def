"""What runs kernels for the stand-in for CuPy: PTX as NVRTC makes it of the very text that CuPy is given."""

import time
from collections import Counter
from functools import cache
from pathlib import Path

from kept import kept

from fastadam.benchmarks import as_cupy
from ptx.launch import Program


class Interpreter:
    """Programs of one architecture, such as "90". folder: where NVRTC's PTX is kept, by text, options and version.

    spent: seconds and counts of compiling, reading and executing.
    """

    def __init__(self, architecture, folder):
        self.architecture, self.spent, self._folder = architecture, Counter(), Path(folder)
        self._program = cache(self._read)

    def _read(self, text, options, name):
        began = time.perf_counter()
        ptx = self._ptx(text, (*options, f"-arch=compute_{self.architecture}"))
        read = time.perf_counter()
        program = Program(ptx, name)
        self.spent.update({"compiling": read - began, "reading": time.perf_counter() - read, "kernels": 1})
        return program

    def _ptx(self, text, options):
        def compile_to(new):
            self.spent["compiled"] += 1
            new.write_text(as_cupy.compiled(text, *options).ptx)

        return kept(self._folder, [text, *options, *as_cupy.ADDED, as_cupy.version()], compile_to).read_text()

    def __call__(self, text, options, name):
        """What executes this kernel of a program in CUDA: takes (blocks, threads, arguments, memory)."""
        program = self._program(text, options, name)

        def execute(blocks, threads, arguments, memory):
            began = time.perf_counter()
            instructions = program(blocks, threads, arguments, memory)
            self.spent.update({"executing": time.perf_counter() - began, "launches": 1, "instructions": instructions})

        return execute


def report(architecture, spent):
    """A line on what interpreters of an architecture have spent."""
    x = Counter(spent)
    return (
        f"PTX executed by interpreter, sm_{architecture}: {x['kernels']} kernels, {x['launches']} launches, "
        f"{x['instructions']:.3g} thread-instructions in {x['executing']:.0f} s; reading {x['reading']:.0f} s; "
        f"NVRTC {x['compiling']:.0f} s for {x['compiled']} that were not kept from before"
    )
