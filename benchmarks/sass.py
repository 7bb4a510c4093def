"""Models what bounds the CUDA kernels, from the machine code that NVRTC's assembler makes for an H100: no GPU ran it.

    python -m fastadam.benchmarks.sass [--json FILE]

For every instantiation of the covering set: registers, how many threads they leave room for, and the instructions an
element and a byte of the shortest path that makes all of a thread's accesses: all of them whole, and of rows none that
has missed a step. Memory moves 3.35 TB/s; 132 multiprocessors issue 4 instructions of 32 threads each cycle at 1.755
GHz. So beyond 8.85 of a thread's instructions a byte issue binds, if nothing else does. Not modelled: latency, bank
conflicts, caches, threads that part, and what a few threads of a block do for all of it (the scales of 8-bit groups:
two warps of some 60 instructions, below 4 an element).

A walk that only adds up sums reads as little as 4 bytes an element and goes through shared memory, in the one order of
summation: of some, issue binds.

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

import numpy as np

from fastadam.benchmarks import as_cupy, files
from fastadam.benchmarks.machine import ROOT
from fastadam.benchmarks.markdown import table
from fastadam.kernels import ALL
from fastadam.kernels.cuda import OPTIONS, Instantiation, Riding, source
from fastadam.kernels.formats import BFLOAT16, CODES, FLOAT32

ARCHITECTURE, BYTES_PER_SECOND, ISSUED = "90", 3.35e12, 132 * 4 * 32 * 1.755e9  # thread-instructions a second
BOUND = ISSUED / BYTES_PER_SECOND  # a byte: 8.85
REGISTERS, THREADS, BLOCKS = 65_536, 2_048, 32  # of a multiprocessor

ALL_CHORES = Riding(True, True, True, True, FLOAT32, BFLOAT16)
ADAM = {  # what the table shows of one kernel, and the most instructions a byte that were asked for
    title: (Instantiation("adam", "ByValue", (p, p, moment, moment, None), chores), asked)
    for title, p, moment, chores, asked in [
        ("float32", FLOAT32, FLOAT32, Riding(), None),
        ("all bfloat16", BFLOAT16, BFLOAT16, Riding(drawn=True), None),
        ("float32, all chores", FLOAT32, FLOAT32, ALL_CHORES, None),
        ("float32, moments of 8 bits", FLOAT32, CODES, Riding(drawn=True), 8.0),
        ("bfloat16, moments of 8 bits", BFLOAT16, CODES, Riding(drawn=True), 10.0),
    ]
}


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


def stored_by(opcode):
    """Return how many words of 4 bytes an instruction stores, 0 for what stores less."""
    match = re.match(r"STG\.E(?:\.(64|128))?$", opcode)
    return int(match[1] or 32) // 32 if match else 0


def shortest(instructions, labels, loads, stores, apart=None):
    """Return the opcodes of the shortest path from the entry to an exit with so many loads of 16 bytes and so many
    words stored; None where there is none.

    apart: the phase, counted by the barriers before it, whose stores are a few threads' for all of a block: they do not
    count. What is called (divisions and roots of subnormal or infinite numbers) is not entered.
    """
    heap, before = [(0, (0, 0, 0, 0), None)], {}
    while heap:
        length, place, previous = heapq.heappop(heap)
        if place in before or place[0] >= len(instructions):
            continue
        before[place] = previous
        at, loaded, stored, phase = place
        predicate, opcode, operands = instructions[at]
        loaded = min(loads, loaded + opcode.startswith("LDG.E.128"))
        stored = min(stores, stored + (stored_by(opcode) if phase != apart else 0))
        phase = min(2, phase + opcode.startswith("BAR"))
        if opcode == "EXIT" and (loaded, stored) == (loads, stores):
            path = []
            while place is not None:
                path.append(instructions[place[0]][1])
                place = before[place]
            return path[::-1]
        target = re.search(r"`\((\.L_x_\d+)\)", operands) if opcode.startswith("BRA") else None
        if target and target[1] in labels:
            heapq.heappush(heap, (length + 1, (labels[target[1]], loaded, stored, phase), place))
        always = predicate is None and not re.match(r"U?P\d|!U?P\d|U?R\d", operands)
        if not (opcode.startswith(("CALL", "RET")) or (opcode.startswith(("EXIT", "BRA")) and always)):
            heapq.heappush(heap, (length + 1, (at + 1, loaded, stored, phase), place))
    return None


def read_for_sums(step):
    """Return the formats of the streams that a kernel's sums depend on: those which change them when they change."""
    kernel, rng = ALL[step.kernel].switched(step.on), np.random.default_rng(1)
    c = kernel.Coefficients(*rng.random(len(kernel.Coefficients._fields)))
    values = [None if format is None else rng.random((2, 99)) * 2 - 1 for format in step.streams]

    def sums(k):
        p, g, *slots = (x if x is None else x[int(number == k)] for number, x in enumerate(values))
        with np.errstate(invalid="ignore"):
            return np.array(kernel.stepped(True, np.zeros(99), p, g, slots, c)[2])

    return [format for k, format in enumerate(step.streams) if format and not np.array_equal(sums(k), sums(-1), True)]


def traffic(step):
    """Return (format, how often it is read, how often written) of each stream of a step."""
    p, g, *slots = step.streams
    if step.chores.summing:
        return [(format, 1, 0) for format in read_for_sums(step)]
    cleared = int(step.chores.clear and step.table != "Rows")  # whose gradient is cleared by itself
    return [
        (format, read, written)
        for format, read, written in [
            (p, 1, 1), (g, 1, cleared), *((slot, 1, 1) for slot in slots),
            (p if step.split else None, 1, 1), (step.chores.ema, 1, 1),
            (step.chores.copy, int(step.chores.followed), 1),
        ]
        if format is not None
    ]  # fmt: skip


def bytes_of(step):
    """Return how many bytes a step reads and writes an element."""
    return sum((read + written) * format.bytes / format.block for format, read, written in traffic(step))


def accesses_of(step):
    """Return (loads of 16 bytes, words of 4 bytes stored) that one thread makes where all is whole."""
    loads = stores = 0
    for format, read, written in traffic(step):
        # Of codes a thread loads the words that hold them.
        loads += read * (4 if format.block > 1 else format.bytes) * step.width // 16
        stores += written * (1 if format.block > 1 else format.bytes) * step.width // 4
    return loads, stores


def row_of(step, registers, instructions, labels):
    """Return the model's numbers of one instantiation."""
    rounded = -(-registers // 8) * 8
    blocks = min(BLOCKS, THREADS // step.threads, REGISTERS // (rounded * step.threads))
    coded = any(format is not None and format.block > 1 for format in step.streams)
    apart = 1 if coded and not step.chores.summing else None  # where scales are made
    path = shortest(instructions, labels, *accesses_of(step), apart)
    row = {"registers": registers, "occupancy": blocks * step.threads / THREADS, "bytes": bytes_of(step)}
    if path is None:
        return row | {"instructions": None, "a_byte": None, "issue": None}
    an_element = len(path) / step.width
    a_byte = an_element / row["bytes"]
    return row | {"instructions": an_element, "a_byte": a_byte, "issue": a_byte / BOUND}


def assembled(text):
    """Return ({kernel: (instructions, labels)}, {kernel: registers}) of a program."""
    _, code, log = as_cupy.compiled(text, *OPTIONS, f"-arch=sm_{ARCHITECTURE}", "-Xptxas=-v")
    registers = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL)
    return disassembled(code), dict(registers)


def modelled(steps, assemble=assembled):
    """Return {name: numbers} of these instantiations."""
    steps = list(dict.fromkeys(steps))
    kernels, registers = assemble(source(steps))
    return {
        step.name: row_of(step, int(registers[step.name]), *kernels[step.name]) | {"plain": plain_of(step)}
        for step in steps
    }


def section(result):
    """Yield what benchmarks/GPU.md shows of a result."""
    yield "Machine code for sm_90 as NVRTC makes it, shortest paths: **a model, no GPU ran it.** *issue* is the share"
    yield "of the instructions that an H100 could issue while it moves these bytes."
    yield ""
    rows = []
    for title, (step, asked) in ADAM.items():
        row = result["cases"][step.name]
        verdict = "" if asked is None else f"≤ {asked:g}: {'met' if row['a_byte'] <= asked else '**missed**'}"
        cells = f"{row['occupancy']:.0%}", f"{row['instructions']:.1f}", f"{row['bytes']:g}", f"{row['a_byte']:.2f}"
        rows.append([title, str(row["registers"]), *cells, verdict, f"{row['issue']:.0%}"])
    yield from table(
        ["Adam", "registers", "threads at once", "instructions an element", "bytes", "a byte", "asked", "issue"], rows
    )
    yield ""
    cells, formats = {}, ("float32", "bfloat16")
    for row in result["cases"].values():
        if row["plain"]:
            cells[tuple(row["plain"])] = f"{row['instructions']:.1f}, {row['bytes']:g} ({row['issue']:.0%})"
    yield from table(
        ["instructions and bytes an element (issue)", *formats],
        [[kernel, *(cells[kernel, format] for format in formats)]
         for kernel in sorted({kernel for kernel, _ in cells}) if all((kernel, format) in cells for format in formats)],
    )  # fmt: skip
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"{versions}; commit {result['commit'][:10]}, {result['date']}."


def covering():
    """Return every instantiation that the tests need."""
    sys.path.append(str(ROOT / "tests"))
    try:
        from cuda_host import covering_steps, plain_steps, steps, stored_steps
    except ImportError:
        raise RuntimeError("no tests/cuda_host: run this in a clone") from None
    of_adam = (step for step, _ in ADAM.values())
    listed = chain(of_adam, plain_steps(), steps(), covering_steps(), stored_steps())
    return [step for step in dict.fromkeys(listed) if isinstance(step, Instantiation)]


def plain_of(step):
    """Return (kernel, format) of one whose streams all rest in one format and which does no chore; None of others."""
    formats = {format.name for format in step.streams if format is not None}
    riding = step.chores._replace(drawn=False, summed=False, summing=False)
    if (step.table, step.split, len(formats), riding) != ("ByValue", False, 1, Riding()):
        return None
    slots = [slot.name for slot, format in zip(ALL[step.kernel].slots, step.streams[2:], strict=True) if format]
    first = " its sums" if step.chores.summing else " after its sums" if step.chores.summed else ""
    return f"{', '.join([step.kernel, *sorted(step.on)])} ({', '.join(slots)}){first}", *formats


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
    parser = argparse.ArgumentParser(
        prog="python -m fastadam.benchmarks.sass",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
