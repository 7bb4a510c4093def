"""Models what bounds the CUDA kernels, from the machine code that NVRTC's assembler makes for an H100: no GPU ran it.

    python -m fastadam.benchmarks.sass [--json FILE]

For every instantiation of the covering set that steps whole leaves: registers, how many threads they leave room for,
and the instructions an element and a byte of the shortest path that makes all of a thread's accesses. Memory moves
3.35 TB/s; 132 multiprocessors issue 4 instructions of 32 threads each cycle at 1.755 GHz. So beyond 8.85 of a thread's
instructions a byte issue binds, if nothing else does. Not modelled: latency, bank conflicts, caches, threads that part,
and what a few threads of a block do for all of it (the scales of 8-bit groups: two warps of some 60 instructions, below
4 an element).

Needs a clone, whose tests say what the covering set is, and the packages of pip install '.[cuda-ci]'.
"""

import argparse
import heapq
import re
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from fastadam.benchmarks import as_cupy, files
from fastadam.benchmarks.machine import ROOT
from fastadam.kernels.cuda import OPTIONS, Instantiation, source

ARCHITECTURE, BYTES_PER_SECOND, ISSUED = "90", 3.35e12, 132 * 4 * 32 * 1.755e9  # thread-instructions a second
BOUND = ISSUED / BYTES_PER_SECOND  # a byte: 8.85
REGISTERS, THREADS, BLOCKS = 65_536, 2_048, 32  # of a multiprocessor


def disassembler():
    """Return where nvdisasm lies. Raises RuntimeError where it is not installed."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in Path(folder).glob("*/bin/nvdisasm"):
            return path
    raise RuntimeError("no nvdisasm: pip install '.[cuda-ci]'")


def disassembled(code):
    """Return {kernel: (instructions as (predicate, opcode, operands), labels)} of machine code."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "code.cubin"
        path.write_bytes(code)
        command = [disassembler(), "-c", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = {}
    for match in re.finditer(r"^\.text\.(\w+):\n(.*?)(?=^\s*\.section|\Z)", text, re.MULTILINE | re.DOTALL):
        instructions, labels = [], {}
        for line in match[2].splitlines():
            if label := re.match(r"^\s*(\.L_x_\d+|\$[\w$]+):", line):
                labels[label[1]] = len(instructions)
            if one := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P[T\d])\s+)?([A-Z][\w.]*)\s*(.*?);", line):
                instructions.append(one.groups())
        kernels[match[1]] = instructions, labels
    return kernels


def kind_of(opcode):
    """Return what the shortest path must make as often as its step asks: "wide", "narrow" or "" for an instruction."""
    if re.match(r"(LDG|STG)\.E\.128", opcode):
        return "wide"
    return "narrow" if re.match(r"STG\.E$|STG\.E\.64$", opcode) else ""


def shortest(instructions, labels, wide, narrow, apart=None):
    """Return the opcodes of the shortest path from the entry to an exit with so many accesses; None where there is
    none.

    apart: the phase, counted by the barriers before it, whose stores are a few threads' for all of a block: they do not
    count. What is called (divisions and roots of subnormal or infinite numbers) is not entered.
    """
    heap, before = [(0, (0, 0, 0, 0), None)], {}
    while heap:
        length, place, previous = heapq.heappop(heap)
        if place in before or place[0] >= len(instructions):
            continue
        before[place] = previous
        at, seen_wide, seen_narrow, phase = place
        predicate, opcode, operands = instructions[at]
        kind = "" if phase == apart else kind_of(opcode)
        seen_wide, seen_narrow = min(wide, seen_wide + (kind == "wide")), min(narrow, seen_narrow + (kind == "narrow"))
        phase = min(2, phase + opcode.startswith("BAR"))
        if opcode == "EXIT" and (seen_wide, seen_narrow) == (wide, narrow):
            path = []
            while place is not None:
                path.append(instructions[place[0]][1])
                place = before[place]
            return path[::-1]
        target = re.search(r"`\((\.L_x_\d+)\)", operands) if opcode.startswith("BRA") else None
        if target and target[1] in labels:
            heapq.heappush(heap, (length + 1, (labels[target[1]], seen_wide, seen_narrow, phase), place))
        always = predicate is None and not re.match(r"U?P\d|!U?P\d|U?R\d", operands)
        if not (opcode.startswith(("CALL", "RET")) or (opcode.startswith(("EXIT", "BRA")) and always)):
            heapq.heappush(heap, (length + 1, (at + 1, seen_wide, seen_narrow, phase), place))
    return None


def traffic(step):
    """Return (format, how often it is read or written) of each stream of a step."""
    p, g, *slots = step.streams
    return [
        (format, times)
        for format, times in [
            (p, 2), (g, 1 + bool(step.chores.clear)), *((slot, 2) for slot in slots), (p if step.split else None, 2),
            (step.chores.ema, 2), (step.chores.copy, 1),
        ]
        if format is not None
    ]  # fmt: skip


def bytes_of(step):
    """Return how many bytes a step reads and writes an element."""
    return sum(times * format.bytes / format.block for format, times in traffic(step))


def accesses_of(step):
    """Return (of 16 bytes, narrower stores) that one thread makes where all is whole."""
    width, wide, narrow = step.width, 0, 0
    for format, times in traffic(step):
        if format.block > 1:  # loads of the words that hold its codes, one store of a word for each 4
            wide, narrow = wide + width * 4 // 16, narrow + 1
        elif format.bytes * width >= 16:
            wide += times * format.bytes * width // 16
        else:
            narrow += times == 1
    return wide, narrow


def row_of(step, registers, instructions, labels):
    """Return the model's numbers of one instantiation."""
    rounded = -(-registers // 8) * 8
    blocks = min(BLOCKS, THREADS // step.threads, REGISTERS // (rounded * step.threads))
    coded = any(format is not None and format.block > 1 for format in step.streams)
    path = shortest(instructions, labels, *accesses_of(step), apart=1 if coded else None)  # where scales are made
    row = {"registers": registers, "occupancy": blocks * step.threads / THREADS, "bytes": bytes_of(step)}
    if path is None:
        return row | {"instructions": None, "a_byte": None, "issue": None}
    an_element = len(path) / step.width
    a_byte = an_element / row["bytes"]
    return row | {"instructions": an_element, "a_byte": a_byte, "issue": a_byte / BOUND}


def modelled(steps):
    """Return {name: numbers} of these instantiations, whole leaves alone."""
    steps = [step for step in steps if isinstance(step, Instantiation) and step.table == "ByValue"]
    _, code, log = as_cupy.compiled(source(steps), *OPTIONS, f"-arch=sm_{ARCHITECTURE}", "-Xptxas=-v")
    registers = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))
    kernels = disassembled(code)
    return {step.name: row_of(step, int(registers[step.name]), *kernels[step.name]) for step in steps}


def covering():
    """Return every instantiation that the tests need."""
    sys.path.append(str(ROOT / "tests"))
    try:
        from cuda_host import covering_steps, steps, stored_steps
    except ImportError:
        raise RuntimeError("no tests/cuda_host: run this in a clone") from None
    return list(dict.fromkeys(chain(steps(), covering_steps(), stored_steps())))


def lines(rows):
    """Yield the table as text."""
    yield "a model from machine code for sm_90; no GPU ran it"
    yield f"{'registers':>9s} {'occupancy':>9s} {'an element':>10s} {'bytes':>6s} {'a byte':>6s} {'issue':>6s}  kernel"
    for name, row in sorted(rows.items(), key=lambda item: -(item[1]["issue"] or 0)):
        if row["issue"] is None:
            yield f"{row['registers']:9d} {row['occupancy']:9.0%} {'no path':>10s} {row['bytes']:6.4g} {'':13s}  {name}"
        else:
            yield (
                f"{row['registers']:9d} {row['occupancy']:9.0%} {row['instructions']:10.1f} {row['bytes']:6.4g} "
                f"{row['a_byte']:6.2f} {row['issue']:6.0%}  {name}"
            )


def main():
    """Print the table; write it."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.sass", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table there")
    parser.add_argument("--only", default="", help="instantiations whose names hold this")
    args = parser.parse_args()
    rows = modelled([step for step in covering() if args.only in step.name])
    print("\n".join(lines(rows)))
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        files.write(
            args.json,
            {
                "bench": "sass", "model": "machine code for sm_90, shortest paths; no GPU ran it",
                "date": time.strftime("%Y-%m-%d"), "commit": commit,
                "machine": {"gpu": "none", "modelled": "H100: 3.35 TB/s, 132 multiprocessors, 1.755 GHz"},
                "versions": {name: version(name) for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm")},
                "threads": None, "bound": BOUND, "cases": rows,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
