"""What runs kernels for the stand-in for CuPy: PTX as NVRTC makes it of the very text that CuPy is given."""

import time
from collections import Counter
from functools import cache

from ptx.compiling import Compiler
from ptx.launch import Program


class Interpreter:
    """Programs of one architecture, such as "90". folder: where NVRTC's output is kept.

    spent: seconds and counts of compiling, reading and executing. visits: by kernel, how many threads ran each block of
    its text.
    """

    def __init__(self, architecture, folder):
        self.architecture, self.spent, self.visits = architecture, Counter(), {}
        self._compiler = Compiler(architecture, folder)
        self._program = cache(self._read)

    def _read(self, text, options, name):
        began = time.perf_counter()
        ptx = self._compiler.ptx(text, options)
        read = time.perf_counter()
        program = Program(ptx, name)
        self.spent.update({"compiling": read - began, "reading": time.perf_counter() - read, "kernels": 1})
        return program

    def __call__(self, text, options, name):
        """What executes this kernel of a program in CUDA: takes (blocks, threads, arguments, memory)."""
        program = self._program(text, options, name)

        def execute(blocks, threads, arguments, memory):
            began = time.perf_counter()
            machine = program(blocks, threads, arguments, memory)
            self.visits.setdefault(name, Counter()).update(machine.visits)
            instructions = sum(len(program.kernel.blocks[block]) * n for block, n in machine.visits.items())
            self.spent.update({"executing": time.perf_counter() - began, "launches": 1, "instructions": instructions})

        return execute

    def __str__(self):
        x = self.spent
        return (
            f"PTX executed by interpreter, sm_{self.architecture}: {x['kernels']} kernels, {x['launches']} launches, "
            f"{x['instructions']:.3g} thread-instructions in {x['executing']:.0f} s; reading {x['reading']:.0f} s; "
            f"NVRTC {x['compiling']:.0f} s for {self._compiler.compiled} that were not kept from before"
        )
