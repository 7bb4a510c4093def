"""The threads of one grid: from block to block of a kernel's text, and what a barrier asks of them.

The threads whose next block has the smallest number go first, all at once, so they meet again where branches do.
"""

import numpy as np

from ptx.blocks import DONE, WAIT, Translation
from ptx.instructions import Fault
from ptx.memory import WIDEST, WORDS, Everything
from ptx.races import Shadow
from ptx.reading import SPACES, Kernel

POISON = 0xA5  # every byte of registers, shared memory and padding that nobody has written


class Program:
    """A kernel of a program in PTX, read and translated once; called as CuPy calls a function."""

    def __init__(self, text, name):
        self.kernel = Kernel(text, name)
        self.blocks = Translation(self.kernel)
        self.grains = {space: self.kernel.grain(space) for space in ("global", "shared")}
        self.shared = max((at + size for at, size in self.kernel.shared.values()), default=0)
        self.inside = np.zeros(self.shared + WIDEST, bool)  # a variable, by byte of shared memory
        for at, size in self.kernel.shared.values():
            self.inside[at : at + size] = True

    def __call__(self, grid, block, arguments, memory):
        """Run it to its end on a Memory, as the task that is under way there. Returns how many thread-instructions."""
        return Machine(self, grid, block, arguments, memory).run()


class Machine:
    """One launch of `grid` blocks of `block` threads. arguments: NumPy arrays of the parameters' bytes.

    Raises Fault for what a device leaves undefined.
    """

    def __init__(self, program, grid, block, arguments, memory):
        self.program, self.kernel, self.memory, self.threads = program, program.kernel, memory, block
        if not (0 < grid < 2**31 and 0 < block <= self.kernel.most):
            expected = f"expected from 1 to {self.kernel.most} threads"
            raise Fault(f"{self.kernel.name}: a grid of {grid} blocks of {block} threads, {expected}")
        self.size = size = grid * block
        index = np.arange(size, dtype=np.uint32)
        self.tid, self.ctaid, self.ntid = index % np.uint32(block), index // np.uint32(block), np.uint32(block)
        self._thread, self._home = index.astype(np.int64), self.ctaid.astype(np.int64)
        self._fill_parameters(arguments)
        grain = program.grains["shared"]
        self._room = -(-program.shared // 16) * 16
        self._shared = np.full(grid * self._room, POISON, np.uint8)
        self._written = np.zeros(len(self._shared) // grain, bool)
        self._shadow = Shadow(len(self._written) * bool(program.shared))
        self._launch = memory.begin()
        self._watched = self._home if self.kernel.waits else self._thread  # whose accesses nothing orders in one launch
        self._touched = np.zeros(len(memory.extents), bool)

    def _fill_parameters(self, arguments):
        places, given = self.kernel.parameters.values(), [x.nbytes for x in arguments]
        if given != (sizes := [size for _, size in places]):
            raise Fault(f"{self.kernel.name}: parameters of {given} bytes, expected {sizes}")
        whole = -(-max((at + size for at, size in places), default=0) // 16) * 16
        self._parameters, self._given = np.full(whole, POISON, np.uint8), np.zeros(whole, bool)
        for (at, size), x in zip(places, arguments, strict=True):
            self._parameters[at : at + size] = np.frombuffer(x.tobytes(), np.uint8)
            self._given[at : at + size] = True

    def run(self):
        """All threads until they have returned. Returns how many instructions they made."""
        kinds, functions = self.kernel.registers, self.program.blocks.functions
        registers = {
            name: np.zeros(self.size, bool) if kinds[name] == "?"
            else np.full(self.size * int(kinds[name][1]), POISON, np.uint8).view(kinds[name])
            for name in self.program.blocks.kept
        }  # fmt: skip
        at, instructions = np.zeros(self.size, np.uint16), 0
        try:
            with np.errstate(all="ignore"):
                while (now := int(at.min())) != DONE:
                    if now >= WAIT:
                        self._meet(at)
                        continue
                    threads = np.flatnonzero(at == now)
                    instructions += len(threads) * len(self.kernel.blocks[now])
                    at[threads] = functions[now](self, registers, slice(None) if len(threads) == self.size else threads)
        except Fault as fault:
            if self.kernel.name in str(fault):
                raise
            raise Fault(f"{self.kernel.name}, block {now}: {fault}") from None
        touched, grain = np.flatnonzero(self._touched), self.program.grains["global"]
        self.memory.launched(self.memory.timeline.running, self._launch, touched, grain)
        return instructions

    def _meet(self, at):
        """Every thread has returned or waits: those of one block at one barrier, or none of them."""
        of_block = at.reshape(-1, self.threads)
        if (of_block != of_block[:, :1]).any():
            what = "threads of a block wait at different barriers, or have returned before one"
            raise Fault(f"{self.kernel.name}: {what}")
        at[at != DONE] -= WAIT
        self.memory.epoch += 1

    def _fault(self, what, where, threads, wrong, address):
        (block, k), who = where, self._thread[threads]
        first = np.flatnonzero(np.broadcast_to(wrong, who.shape))[:4]
        text, at = self.kernel.blocks[block][k].text, f"at {[hex(x) for x in address[first].tolist()]}"
        some = f"threads {who[first].tolist()} of {self.size}"
        raise Fault(f"{self.kernel.name}, block {block}: {text}: {what}; {some}, {at}")

    def _reach(self, space, address, kind, count, threads, where, stores, atomic=False):
        """Memory as elements of this dtype, and each thread's index there, after all checks."""
        size, shape = int(kind[1]), self._thread[threads].shape
        address, nbytes = np.broadcast_to(address, shape).astype(np.int64), size * count

        def refuse(wrong, what):
            if np.any(wrong):
                self._fault(what, where, threads, np.any(np.atleast_2d(wrong), axis=0), address)

        refuse(address % nbytes != 0, "misaligned")
        if space == "param":
            refuse(stores, "a parameter is stored")
            each = np.clip(address, 0, len(self._given) - nbytes) + np.arange(nbytes)[:, None]
            refuse((each[0] != address) | ~self._given[each].all(axis=0), "outside the parameters")
            return self._parameters.view(kind), address // size
        if space == "shared":
            inside, at = self.program.inside, np.clip(address, 0, self.program.shared)
            refuse((at != address) | ~inside[at] | ~inside[at + nbytes - 1], "outside shared memory")
            address, grain = address + self._home[threads] * self._room, self.program.grains["shared"]
            places = address // grain + np.arange(nbytes // grain)[:, None]
            who = self._thread[threads]
            if stores:
                refuse(self._shadow.store(places, who, self.memory.epoch), "a race in shared memory")
                self._written[places] = True
            else:
                refuse(~self._written[places], "shared memory that nobody has written")
                refuse(self._shadow.load(places, who, self.memory.epoch)[1], "a race in shared memory")
            return self._shared.view(kind), address // size
        extents, places, wrong = self.memory.home(address, nbytes, self.program.grains["global"])
        refuse(wrong, "outside all arrays")
        self._touched[extents] = True
        who, between, within = self._watched[threads], self.memory.between, self.memory.within

        def take(shadow, who, epoch):
            if stores and not atomic:
                return np.zeros(places.shape, bool), shadow.store(places, who, epoch)
            return (shadow.add if atomic else shadow.load)(places, who, epoch)

        first, race = take(between, who, self._launch)
        refuse(race, "a race")
        refuse(first & (self.memory.writers[places] == 0), "memory that nobody has written")
        if self.kernel.waits:
            refuse(take(within, self._thread[threads], self.memory.epoch)[1], "a race between barriers")
        return WORDS[kind], (address - Everything.FROM) // size

    def _of_each_space(self, address, threads):
        """(space, addresses in it, threads, which of those asked they are) of generic addresses."""
        address, firsts = np.broadcast_to(address, self._thread[threads].shape), np.array([*SPACES.values()], "u8")
        homes = np.searchsorted(firsts, address, "right") - 1
        for number, (space, first) in enumerate(zip(SPACES, firsts, strict=True)):
            if len(which := np.flatnonzero(homes == number)):
                yield space, address[which] - first, self._thread[threads][which], which

    def load(self, space, address, kind, count, threads, where):
        """What threads read: `count` arrays."""
        if not space:
            values = np.empty((count, *self._thread[threads].shape), kind)
            for space, at, some, which in self._of_each_space(address, threads):
                values[:, which] = self.load(space, at, kind, count, some, where)
            return values
        memory, index = self._reach(space, address, kind, count, threads, where, False)
        return [memory[index + k] for k in range(count)]

    def store(self, space, address, kind, values, threads, where):
        """What threads write."""
        if not space:
            for space, at, some, which in self._of_each_space(address, threads):
                parts = [np.broadcast_to(x, self._thread[threads].shape)[which] for x in values]
                self.store(space, at, kind, parts, some, where)
            return
        memory, index = self._reach(space, address, kind, len(values), threads, where, True)
        for k, x in enumerate(values):
            memory[index + k] = x

    def add(self, address, x, threads, where):
        """Add what threads have, each whole, to numbers of 64 bits in global memory."""
        memory, index = self._reach("global", address, "u8", 1, threads, where, True, atomic=True)
        places, place = np.unique(index, return_inverse=True)
        sums = np.zeros(len(places), np.uint64)
        np.add.at(sums, place, x)
        memory[places] += sums


assert SPACES["shared"] > Everything.FROM + (1 << 47)
