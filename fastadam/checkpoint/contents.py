"""Says what a checkpoint takes of an optimizer of fastadam: numbers for the manifest, tensors for the files.

A tensor is called by its stream and its leaf's path: params['w'], m['w'], v['w'], ema['w'], master['w'], ... A
FlatBuffer's are those of the tree that it was made of, so that one can be loaded into the other. Slots of 8 bits follow
a leaf's elements as they lie, in groups of 64 with a scale each: m['w'] are the codes, (groups, 64), m_scales['w'] the
scales, (groups,).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, Protocol, runtime_checkable

from fastadam.arrays.device import home_of
from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, describe, memory_order
from fastadam.arrays.tree import Structure, Tree
from fastadam.checkpoint.tensors import Piece
from fastadam.checks import integer
from fastadam.kernels.codes import GROUP
from fastadam.kernels.contract import Slot
from fastadam.kernels.formats import CODES, format_of, is_signed

ACCUMULATED = "accumulated"  # the stream of the sums of micro-batches' gradients
HEAD = "version", "method", "t", "seed", "skipped", "groups"  # of Optimizer.state_dict


@runtime_checkable
class Kept(Protocol):
    """Is what a checkpoint asks of an optimizer over arrays: an Optimizer, or one that is made of several."""

    @property
    def params(self) -> Tree: ...

    @property
    def paths(self) -> list[str]: ...

    @property
    def slots(self) -> dict[str, Slot]: ...

    @property
    def copy_to(self) -> Tree: ...

    @property
    def index_offset(self) -> int | dict[str, int]: ...

    @property
    def accumulated(self) -> tuple[int, dict[str, Array]]: ...

    def state_dict(self, copy: bool = True) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    def accumulate(self, grads: Tree, micro_batches: int = 1) -> None: ...


@dataclass(frozen=True)
class Shard:
    """Says what a leaf is a part of: the elements from `start` on of `whole`.

    whole: the shape of the array it is cut from, elements counted in C order, which has the leaf's path; or a
        FlatBuffer, or a list of (path, shape), whose paths stand for the leaf's then. In 8 bits start is a multiple of
        64, and so is the end of all parts but the last.

    >>> part = fa.Adam({"w": np.ones((50, 8), np.float32)}, index_offset=400)
    >>> shards = {"['w']": fa.checkpoint.Shard(whole=(100, 8), start=400)}
    """

    whole: Any
    start: int


@dataclass(frozen=True)
class Snapshot:
    """Holds what one save writes. head, leaves: for the manifest. pieces: of tensors, in memory that steps change. t:
    the count of steps."""

    head: dict[str, Any]
    leaves: dict[str, dict[str, Any]]
    pieces: list[Piece]
    t: int


class Layout:
    """Names the tensors that a leaf's elements belong to, in order.

    path: the leaf's. home: the path by which blocks of 8 bits are called, the same for all parts.
    paths, shapes: of each tensor. offsets: where it begins, in elements from the start of the first.
    start, stop: which of all these elements the leaf has; total: how many there are. order: of its axes in memory.
    """

    def __init__(self, path: str, leaf: Any, array: Array, shard: Shard | None) -> None:
        whole: Any = leaf if shard is None else shard.whole
        before = path if shard is None else ""
        if isinstance(whole, FlatBuffer):
            inner: Sequence[Any] = [(before + name, x) for name, x in zip(whole.names, whole.shapes, strict=True)]
        elif shard is not None and isinstance(whole, list):
            inner = whole
        else:
            inner = [(path, array.shape if shard is None else whole)]
        self.path, self.paths, self.shapes = path, [name for name, _ in inner], [tuple(x) for _, x in inner]
        self.home = self.paths[0] if isinstance(whole, list) and self.paths else path
        *self.offsets, self.total = accumulate(map(prod, self.shapes), initial=0)
        self.start = 0 if shard is None else shard.start
        self.stop = self.start + array.size
        straight = shard is not None or isinstance(leaf, FlatBuffer)
        self.order = list(range(len(self.shapes[0]))) if straight and len(inner) == 1 else list(memory_order(array))
        if not 0 <= self.start <= self.stop <= self.total:
            raise ValueError(
                f"shards[{path!r}] begins with element {self.start} of {self.total}, params{path} is {describe(leaf)}"
            )

    def parts(self) -> Iterator[tuple[str, tuple[int, ...], int, int, int]]:
        """Yield (path, shape, first and last + 1 of its elements, where in the leaf they begin) for each tensor in
        it."""
        for path, shape, offset in zip(self.paths, self.shapes, self.offsets, strict=True):
            size = prod(shape)
            low, high = max(self.start, offset), min(self.stop, offset + size)
            if low < high or (size == 0 and low == high):
                yield path, shape, low - offset, high - offset, low - self.start

    def coded(self, signed: bool) -> dict[str, Any]:
        """Return what the manifest says of codes of 8 bits."""
        return {"signed": signed, "paths": self.paths, "shapes": list(map(list, self.shapes)), "order": self.order}

    def groups(self) -> tuple[int, int, int]:
        """Return the first group of 64 of the leaf's elements, the last + 1, and how many all have."""
        if (self.start % GROUP and self.start != self.total) or (self.stop % GROUP and self.stop != self.total):
            raise ValueError(
                f"shards[{self.path!r}] has elements {self.start} to {self.stop} of {self.total}, expected multiples "
                f"of {GROUP} where moments are of 8 bits"
            )
        return -(-self.start // GROUP), -(-self.stop // GROUP), -(-self.total // GROUP)


class SavedLeaf:
    """Holds one leaf of an optimizer as a save sees it: its layout, its memory by stream, its numbers.

    path: in params. home: where its arrays lie.
    """

    def __init__(self, path: str, leaf: Any, state: dict[str, Any], shard: Shard | None) -> None:
        self.path, self.home = path, home_of([leaf])
        array = leaf.array if isinstance(leaf, FlatBuffer) else leaf
        self.array = self.home.owned(f"params{path}", array)
        self.layout = Layout(path, leaf, self.array, shard)
        arrays = {name: x for name, x in state.items() if hasattr(x, "dtype")}
        self.streams = {"params": self.array, **arrays}
        self.numbers = {name: x for name, x in state.items() if name not in arrays and name != "order"}


def check_not_averaging(opt: Any) -> None:
    """Refuse an optimizer, PyTorch's own too, whose parameters hold their averages now."""
    if getattr(opt, "averaging", False):
        raise RuntimeError(
            "a checkpoint inside averaged() would take the averages for the parameters: save after that block"
        )


def leaves_of(opt: Kept, shards: Mapping[str, Shard] | None) -> tuple[dict[str, Any], list[SavedLeaf]]:
    """Return an optimizer's state_dict and its leaves; checks that shards name leaves."""
    check_not_averaging(opt)
    shards = shards or {}
    for path, shard in shards.items():
        if path not in opt.paths:
            raise ValueError(f"shards has {path!r}, expected paths of leaves: {', '.join(opt.paths[:9])}")
        if not isinstance(shard, Shard):
            raise TypeError(f"shards[{path!r}] is {type(shard).__name__}, expected a checkpoint.Shard")
        integer(f"shards[{path!r}].start", shard.start, low=0)
    state = opt.state_dict(copy=False)
    trees = zip(opt.paths, Structure(opt.params).leaves, strict=True)
    return state, [SavedLeaf(path, x, state["leaves"][f"params{path}"], shards.get(path)) for path, x in trees]


def snapshot(opt: Kept, shards: Mapping[str, Shard] | None, accumulated: bool = False) -> Snapshot:
    """Return what to save of an optimizer, as it is now, with what it has accumulated or without; arrays are not
    copied."""
    state, leaves = leaves_of(opt, shards)
    count, sums = opt.accumulated if accumulated else (0, {})
    numbers: dict[str, dict[str, Any]] = {}
    pieces: list[Piece] = []
    signs = signed_slots(opt)
    for leaf in leaves:
        for path, *_ in leaf.layout.parts():
            before = numbers.setdefault(path, leaf.numbers)
            if before is not leaf.numbers and (leaf.path not in (shards or {}) or before != leaf.numbers):
                raise ValueError(f"two leaves are called {path}, expected paths that differ, or parts alike in numbers")
        for stream, x in leaf.streams.items():
            slot = stream.removesuffix("_scales")
            if f"{slot}_scales" in leaf.streams:
                pieces.append(_coded(leaf.layout, stream, x, signs[slot]))
            else:
                pieces.extend(_plain(leaf.layout, stream, x))
        if leaf.path in sums:
            pieces.extend(_plain(leaf.layout, ACCUMULATED, sums[leaf.path]))
    head = {
        "kind": "fastadam",
        **{key: state[key] for key in HEAD},
        "index_offset": 0 if shards and isinstance(opt.index_offset, dict) else opt.index_offset,  # of the whole tree
        "accumulated": count,
    }
    return Snapshot(head, numbers, pieces, state["t"])


def signed_slots(opt: Kept) -> dict[str, bool]:
    """Return whether codes of 8 bits of each slot have a sign."""
    return {name: is_signed(slot) for name, slot in opt.slots.items()}


def _coded(layout: Layout, stream: str, x: Array, signed: bool) -> Piece:
    first, last, total = layout.groups()
    width = GROUP if format_of(x.dtype) is CODES else 1
    shape = (total, GROUP) if width == GROUP else (total,)
    return Piece(
        stream, layout.home, x.dtype.name, shape, first * width, (last - first) * width, x, layout.coded(signed)
    )


def _plain(layout: Layout, stream: str, x: Array) -> Iterator[Piece]:
    whole = len(layout.paths) == 1 and x.size == layout.total
    for path, shape, first, stop, at in layout.parts():
        values = x if whole else x.reshape(-1)[at : at + stop - first]
        yield Piece(stream, path, x.dtype.name, shape, first, stop - first, values)


Shards = Mapping[str, Shard] | None
