"""A device's arrays: which bytes may be touched, which have been written, and by whose work.

RED_ZONE bytes before and after each array belong to nobody, so what runs over its ends is found; what leads further may
meet another array. Borrowed arrays of other libraries have none: what runs from one into the next is not found, nor
whether they are let go too early, since whoever owns one is kept until the end.
"""

import weakref
from bisect import bisect_right
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

from ptx.instructions import Fault
from ptx.races import Shadow, grown
from ptx.streams import Clock

GRAIN, WIDEST = 2, 16  # bytes of one place, of the widest access
RED_ZONE = 512  # bytes before and after each array that belong to nobody
ROOM = 1 << 18  # places that there are numbers for to begin with: zeros, which take no memory where nobody writes


class Everything:
    """All of this process's memory as bytes: addresses on the device are the host's."""

    FROM = 4096

    def __init__(self):
        shape = ((1 << 47) - 2 * self.FROM,)
        self.__array_interface__ = {"data": (self.FROM, False), "shape": shape, "typestr": "|u1", "version": 3}


BYTES = np.asarray(Everything())
WORDS = {kind: BYTES.view(kind) for kind in ("u1", "i1", "u2", "i2", "u4", "u8", "i4", "i8", "f4", "f8")}


class Owner:
    """What keeps memory in use as long as any array over it lives."""

    def __init__(self, raw):
        self.__array_interface__ = raw.__array_interface__


class Extent:
    """Bytes from `first` to `end` that may be touched. An address there is the place address // GRAIN + shift.

    stream: whose work gets the memory next once it is freed; None for another library's. freed: what is over before
    that work; None as long as there is an array. owners: what keeps another library's memory in use, None for whom
    nobody knows.
    """

    def __init__(self, first, end, base, stream):
        self.first, self.end, self.stream, self.freed, self.owners = first, end, stream, None, []
        # So that an access's first place is a multiple of its count.
        self.shift = base - first // WIDEST * WIDEST // GRAIN

    @property
    def places(self):
        """Its places, as a slice that begins where the widest access could."""
        first, end = self.first // WIDEST * WIDEST, -(-self.end // WIDEST) * WIDEST
        return slice(first // GRAIN + self.shift, end // GRAIN + self.shift)


class Memory:
    """Extents of a device's memory, and for each place the last tasks that wrote it (0: none) and read it."""

    def __init__(self, timeline):
        self.timeline, self.extents, self._places = timeline, [], 0
        self._ends = []  # of the extents
        self.between = Shadow(0)  # of a launch's blocks, of its threads where none can wait for another
        self.within = Shadow(0)  # of threads between barriers
        self.epoch = 0  # of the shadows
        self.writers = np.zeros(ROOM, np.int32)
        self._readers = defaultdict(lambda: np.zeros(len(self.writers), np.int32))
        self._raw = []  # freed arrays too, so that their addresses stay theirs
        self._table = None  # the extents' first, end and shift, where none has been added since

    def allocate(self, shape, dtype, stream):
        """A new array that holds what nobody has written: bytes 0xA5."""
        n = np.empty(shape, dtype).nbytes
        raw = np.full(n + 2 * RED_ZONE + 256, 0xA5, np.uint8)
        base = raw.ctypes.data
        lead = RED_ZONE + -(base + RED_ZONE) % 256
        owner = Owner(raw[lead : lead + n])
        array = np.asarray(owner).view(dtype).reshape(shape)
        self._raw.append(raw)
        if n:
            extent = self.add(base + lead, base + lead + n, stream)
            weakref.finalize(owner, self._free, weakref.ref(self), extent).atexit = False
        return array

    def borrow(self, first, end, owner=None):
        """Let another library's bytes be touched; nothing is known of who wrote them."""
        near = self._near(first, end)
        for x in near:
            if x.first <= first and end <= x.end:
                x.owners += [owner] if x.stream is None else []
                return
        extent = self.add(min([first, *(x.first for x in near)]), max([end, *(x.end for x in near)]), None)
        extent.owners = [owner, *(each for x in near for each in x.owners)]
        self.writers[extent.places] = self.timeline.OUTSIDE

    def _near(self, first, end):
        """Extents that share bytes with these."""
        low = high = bisect_right(self._ends, first)
        while high < len(self.extents) and self.extents[high].first < end:
            high += 1
        return self.extents[low:high]

    @staticmethod
    def _free(memory, extent):
        if (memory := memory()) is not None:
            extent.freed = memory.timeline.now(extent.stream)

    def add(self, first, end, stream):
        """A new extent, in place of what other libraries had there before."""
        old = self._near(first, end)
        assert all(x.stream is None for x in old), "arrays overlap"
        extent, low = Extent(first, end, self._places, stream), bisect_right(self._ends, first)
        self.extents[low : low + len(old)], self._ends[low : low + len(old)] = [extent], [end]
        self._places, self._table = extent.places.stop, None
        if self._places > len(self.writers):
            most = max(2 * len(self.writers), self._places)
            self.writers = grown(self.writers, most)
            for reader, numbers in self._readers.items():
                self._readers[reader] = grown(numbers, most)
        return extent

    def begin(self):
        """The epoch of a launch that begins now."""
        for shadow in (self.between, self.within):
            shadow.grow(len(self.writers))
        self.epoch += 1
        return self.epoch

    def home(self, address, nbytes, grain):
        """(extents by number, places, which go nowhere) of accesses; address: (threads,) int64.

        grain: the fewest bytes that the kernel's accesses have: of so many, the first place stands for all.
        """
        if self._table is None:
            self._table = np.array([(x.first, x.end, x.shift) for x in self.extents], np.int64).reshape(-1, 3).T
        firsts, ends, shifts = self._table
        extents = np.searchsorted(firsts, address, "right") - 1
        if not len(ends):
            return extents, None, np.ones(address.shape, bool)
        wrong = (extents < 0) | (address + nbytes > ends[extents])
        steps = np.arange(0, max(1, nbytes // GRAIN), max(1, grain // GRAIN))
        return extents, address // GRAIN + shifts[extents] + steps[:, None], wrong

    # What a task touches: whole arrays, or what a launch has noted in the shadows.

    def note(self, task, reads, writes):
        """Take in that a task reads and writes these NumPy arrays over device memory. Raises Fault if it may not."""
        touched = [(*self._of(array), writing) for writing, arrays in enumerate((reads, writes)) for array in arrays]
        self._take(task, touched)

    def copied(self, source, target):
        """Let what nobody had written of one array be what nobody has written of the other."""
        written, (_, places) = self.writers[self._of(source)[1]] > 0, self._of(target)
        if not written.all():
            alike = written.shape == self.writers[places].shape
            self.writers[places] *= written if alike else False

    def written(self, array):
        """Whether all of an array over device memory has been written, or is another library's."""
        return bool(self.writers[self._of(array)[1]].all())

    def launched(self, task, epoch, touched, grain):
        """Take in what a launch has touched: of the extents by these numbers, the places of this epoch."""
        step = max(1, grain // GRAIN)
        for extent in (self.extents[number] for number in touched):
            first, end = extent.places.start, extent.places.stop
            each = np.arange(first, end).reshape(-1, step)
            accessed, stored = self.between.touched(slice(first, end, step), epoch)
            loads, stores = each[accessed & ~stored].reshape(-1), each[stored].reshape(-1)
            self._take(task, [(extent, loads, False), (extent, stores, True)])

    def unkept(self, array):
        """A NumPy array over the same memory of ours, which does not keep it in use; another library's as it is."""
        extent = next(iter(self._near(array.ctypes.data, array.ctypes.data + 1)), None)
        if extent is None or extent.stream is None:
            return array
        return np.asarray(SimpleNamespace(__array_interface__=array.__array_interface__)).view(array.dtype)

    def _of(self, array):
        """(extent, places) of a NumPy array over device memory; places: in its order, as indices or as a slice."""
        if not array.size:
            return None, np.zeros(0, np.int64)
        low = array.ctypes.data
        extent = next(iter(self._near(low, low + 1)), None)
        if extent is not None and array.flags.c_contiguous and low + array.nbytes <= extent.end:
            return extent, slice(low // GRAIN + extent.shift, -(-(low + array.nbytes) // GRAIN) + extent.shift)
        steps = [np.arange(n, dtype=np.int64) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
        offsets = np.full(1, low, np.int64)
        for step in [*steps, np.arange(0, array.itemsize, GRAIN)]:
            offsets = (offsets[:, None] + step).reshape(-1)
        if extent is None or offsets.min() < extent.first or offsets.max() >= extent.end:
            raise Fault(f"an array at {low:#x} that leaves the device's memory")
        return extent, offsets // GRAIN + extent.shift

    def _take(self, task, touched):
        said, now = f"task {task.number} on stream {task.stream.number}", Clock(task.before)
        now[task.stream] = task.number
        for extent, places, writing in touched:
            if extent is None:
                continue
            if extent.freed is not None and extent.freed.get(task.stream, 0) < task.number:
                raise Fault(f"{said} touches an array at {extent.first:#x} that was freed before")
            before = [("wrote", self.writers), *(("read", x) for x in self._readers.values() if writing)]
            for did, numbers in before:
                if (other := self.timeline.late(now, numbers[places])) is not None:
                    raise Fault(
                        f"{said} {'writes' if writing else 'reads'} what task {other} on stream "
                        f"{self.timeline.stream_of(other)} {did}, and nothing orders the two"
                    )
            (self.writers if writing else self._readers[task.stream])[places] = task.number
