"""Fits a checkpoint's tensors to an optimizer of fastadam: checks first, then reads, then takes over."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.arrays.host import Array, describe, memory_order
from fastadam.arrays.tree import Structure, rebuild
from fastadam.checkpoint.contents import ACCUMULATED, HEAD, Kept, SavedLeaf, Shards, leaves_of, signed_slots
from fastadam.checkpoint.disk import log
from fastadam.checkpoint.reading import Opened
from fastadam.checkpoint.source import Source
from fastadam.group import is_grouped
from fastadam.kernels import codes
from fastadam.kernels.contract import Slot
from fastadam.kernels.formats import CODES, FLOAT64, encoded, format_of


class Match:
    """Says how a checkpoint fits an optimizer: what differs, and what of it can be taken over.

    differences: texts, the first being what a strict load raises. conversions: what is rounded to another format.
    """

    def __init__(self, opt: Kept, saved: Opened, shards: Shards) -> None:
        self._opt, self._shards, self._source, self._content = opt, shards, Source(saved), saved.content
        self.differences: list[str] = []
        self.conversions: set[str] = set()
        self._state, self._leaves = leaves_of(opt, shards)
        self._slots: dict[str, Slot] = opt.slots
        self._signed = signed_slots(opt)
        head, of_optimizer = self._content["optimizer"], {**self._state, "kind": "fastadam"}
        for key in ("kind", "version", "method"):
            if head.get(key) != of_optimizer[key]:
                self.differences.append(
                    f"the checkpoint's {key} is {head.get(key)!r}, this optimizer's is {of_optimizer[key]!r}"
                )
        self._same_method = not self.differences
        if self._same_method and not shards and head.get("index_offset") != opt.index_offset:
            self.differences.append(
                f"the checkpoint's index_offset is {head.get('index_offset')!r}, this optimizer's is {opt.index_offset}"
            )
        self._head = self._match_head(head) if self._same_method else {}
        paths = [path for leaf in self._leaves for path, *_ in leaf.layout.parts()]
        saved_leaves = self._content["leaves"]
        self.differences += [f"the checkpoint has no {path or 'single array'}, this optimizer has"
                             for path in paths if path not in saved_leaves]  # fmt: skip
        covered = {path for leaf in self._leaves for path in leaf.layout.paths}
        if not shards:
            self.differences += [f"the checkpoint has {path or 'a single array'}, this optimizer has not"
                                 for path in saved_leaves if path not in covered]  # fmt: skip
        self._fitting = [leaf for leaf in self._leaves if self._fits(leaf)]

    def _match_head(self, head: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint's numbers; where this optimizer's lr is a callable, it stays."""
        if lacking := [key for key in HEAD if key not in head]:
            raise ValueError(f"the checkpoint has no {lacking[0]!r}")
        groups, of_optimizer = head["groups"], self._state["groups"]
        if (
            not isinstance(groups, list)
            or len(groups) != len(of_optimizer)
            or not all(isinstance(g, dict) for g in groups)
        ):
            n = len(groups) if isinstance(groups, list) else 0
            self.differences.append(f"the checkpoint has {n} param groups, this optimizer has {len(of_optimizer)}")
            return {}
        merged = []
        for k, (group, of_group) in enumerate(zip(groups, of_optimizer, strict=True)):
            lr = None if of_group["lr"] is None else group.get("lr")
            if lr is None and of_group["lr"] is not None:
                self.differences.append(
                    f"the checkpoint's groups[{k}].lr is a callable, this optimizer's {of_group['lr']!r}"
                )
                lr = of_group["lr"]
            merged.append({**group, "lr": lr})
        return {**{key: head[key] for key in HEAD}, "groups": merged}

    def _fits(self, leaf: SavedLeaf) -> bool:
        """Return whether all of a leaf is in the checkpoint; says what is not."""
        before, saved_leaves = len(self.differences), self._content["leaves"]
        parts = list(leaf.layout.parts())
        if any(path not in saved_leaves for path, *_ in parts):
            return False
        for stream, x in self._plain_streams(leaf):
            if stream != "params" and not self._same_method:
                continue
            for path, shape, *_ in parts:
                name, shape_saved = f"{stream}{path}", self._source.shape(stream, path)
                if shape_saved is None:
                    self.differences.append(f"the checkpoint has no {name}, this optimizer has")
                elif shape_saved != shape:
                    self.differences.append(
                        f"the checkpoint's {name} has the shape {shape_saved}, this optimizer's {shape}"
                    )
                elif (rests := self._source.dtype(stream, path)) != (wanted := self._rests(leaf, stream, x)):
                    if stream in self._slots and FLOAT64.rests not in (rests, wanted):
                        self.conversions.add(f"{stream} from {rests} to {wanted}")
                    else:
                        self.differences.append(f"the checkpoint's {name} is {rests}, this optimizer's {wanted}")
            if self._rests(leaf, stream, x) == CODES.name and self._blocks_alike(leaf, stream) is None:
                self.conversions.add(f"{stream} to blocks of 8 bits that begin elsewhere")
        if self._same_method:
            self._match_numbers(leaf)
        return len(self.differences) == before

    def _match_numbers(self, leaf: SavedLeaf) -> None:
        """Say where a leaf's counts are not one leaf's, and what the checkpoint has of it beside."""
        paths = self._numbered(leaf)
        numbers = [self._content["leaves"][path] for path in paths]
        for path, of_path in zip(paths, numbers, strict=True):
            if differing := sorted(set(leaf.numbers) ^ set(of_path)):
                has, has_not = ("has", "has not") if differing[0] in of_path else ("has no", "has")
                self.differences.append(f"the checkpoint's {path} {has} {differing[0]!r}, this optimizer {has_not}")
            if of_path != numbers[0]:
                self.differences.append(
                    f"{paths[0]} and {path} have taken other steps, {numbers[0]} and {of_path}: expected the same of "
                    "all that become one FlatBuffer"
                )
        streams = {stream for stream, _ in self._plain_streams(leaf)}
        for stream in sorted(self._source.streams - streams - {ACCUMULATED}):
            for path, *_ in leaf.layout.parts():
                if self._source.shape(stream, path) is not None:
                    self.differences.append(f"the checkpoint has {stream}{path}, this optimizer has not")

    def _numbered(self, leaf: SavedLeaf) -> list[str]:
        """Return the paths whose numbers are a leaf's: of all that it is a part of, for it may have no element."""
        return [path for path in leaf.layout.paths if path in self._content["leaves"]]

    def _blocks_alike(self, leaf: SavedLeaf, stream: str) -> str | None:
        """Return the name of the codes that can be taken as they are: they begin with the same leaf."""
        layout = leaf.layout
        if not layout.paths or (at := self._source.coded.get((stream, layout.paths[0]))) is None:
            return None
        coded = self._source.tensors[at[0]]["coded"]
        alike = (coded["paths"], list(map(tuple, coded["shapes"]))) == (layout.paths, layout.shapes)
        is_uncut = layout.stop - layout.start == layout.total
        return at[0] if alike and (is_uncut or coded["order"] == sorted(coded["order"])) else None

    @staticmethod
    def _plain_streams(leaf: SavedLeaf) -> list[tuple[str, Array]]:
        return [(stream, x) for stream, x in leaf.streams.items() if not stream.endswith("_scales")]

    @staticmethod
    def _rests(leaf: SavedLeaf, stream: str, x: Array) -> str:
        return CODES.name if f"{stream}_scales" in leaf.streams else x.dtype.name

    def read(self) -> Callable[[], None]:
        """Read what fits; return what takes it over, as nothing may change before everything is read and checked."""
        values = {leaf.path: self._assemble(leaf, "params") for leaf in self._fitting}
        sums = {leaf.path: self._sums(leaf) for leaf in self._fitting}
        states = {f"params{leaf.path}": self._state_of(leaf) for leaf in self._fitting if self._head}

        def take() -> None:
            now, leaves = self._as_now()
            for conversion in sorted(self.conversions):
                log.warning("%s: rounded %s, to nearest, as opt.convert does", self._source.saved.path, conversion)
            if self._head:
                state = now | self._head
                state["leaves"] |= states
                state["t"] = max([state["t"], *(leaf["count"] for leaf in state["leaves"].values())])
                self._opt.load_state_dict(state)
            for leaf in leaves:
                if leaf.path in values:
                    leaf.home.write(leaf.array, values[leaf.path])
            if self._head:
                self._accumulate(leaves, sums)
            self._refresh_copies(leaves)

        return take

    def _as_now(self) -> tuple[dict[str, Any], list[SavedLeaf]]:
        """Return the optimizer's state_dict and leaves, as steps may have left them since the checkpoint was read."""
        now, leaves = leaves_of(self._opt, self._shards)
        for before, leaf in zip(self._leaves, leaves, strict=True):
            if describe(leaf.array) != describe(before.array):
                difference = f"params{leaf.path} is {describe(leaf.array)}, it was {describe(before.array)}"
                raise ValueError(f"{difference} when the checkpoint was read: expected no other array before take()")
        return now, leaves

    def _sums(self, leaf: SavedLeaf) -> Array | None:
        """Return the sum of a leaf's gradients that was saved; None where there is none."""
        parts = list(leaf.layout.parts())
        if not parts or any(self._source.shape(ACCUMULATED, path) != shape for path, shape, *_ in parts):
            return None
        return self._assemble(leaf, ACCUMULATED)

    def _accumulate(self, leaves: list[SavedLeaf], sums: dict[str, Array | None]) -> None:
        """Let the next step() use what the checkpoint's would have."""
        if count := self._content["optimizer"].get("accumulated", 0):
            params = self._opt.params
            trees = [group["params"] for group in params] if is_grouped(params) else params
            homes = iter(leaves)

            def gradient(_: Any) -> Any:
                leaf = next(homes)
                values = sums.get(leaf.path)
                return None if values is None else leaf.home.put(values.reshape(leaf.array.shape))

            self._opt.accumulate(rebuild(trees, gradient), micro_batches=count)

    def _state_of(self, leaf: SavedLeaf) -> dict[str, Any]:
        paths = self._numbered(leaf)
        state = dict(self._content["leaves"][paths[0]] if paths else leaf.numbers)
        if not paths:  # a FlatBuffer of no arrays, of which the checkpoint says nothing
            state["count"] = min(state["count"], self._head["t"])
        for stream, x in self._plain_streams(leaf):
            if stream != "params":
                if self._rests(leaf, stream, x) == CODES.name:
                    numbers, scales, order = self._codes(leaf, stream)
                    state |= {stream: numbers, f"{stream}_scales": scales, "order": order}
                else:
                    state[stream] = self._assemble(leaf, stream, self._slots.get(stream))
        return state

    def _assemble(self, leaf: SavedLeaf, stream: str, slot: Slot | None = None) -> Array:
        """Return a leaf's stream in the leaf's shape and dtype."""
        like = leaf.streams.get(stream, leaf.array)
        parts = [self._source.wide(stream, path, first, stop) for path, _, first, stop, _ in leaf.layout.parts()]
        if slot is not None:
            parts = [x if x.dtype == like.dtype else format_of(x.dtype).decode(x, slot, x.size) for x in parts]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, like.dtype)
        if slot is not None and flat.dtype != like.dtype:
            with np.errstate(all="ignore"):
                flat = encoded(flat, np.empty(0, like.dtype), slot)
        return flat.reshape(leaf.array.shape)

    def _codes(self, leaf: SavedLeaf, stream: str) -> tuple[Array, Array, list[int]]:
        """Return the blocks of a slot of 8 bits, and the order of axes that they follow: as saved where they lie
        alike."""
        order = list(memory_order(leaf.array))
        parts = list(leaf.layout.parts())
        if (name := self._blocks_alike(leaf, stream)) is not None:
            first, last, _ = leaf.layout.groups()
            saved_order = self._source.tensors[name]["coded"]["order"]
            single = len(leaf.layout.paths) == 1 and leaf.array.ndim == len(saved_order)
            return *self._source.blocks(name, first, last), saved_order if single else order
        slot = self._slots[stream]
        values = [self._source.wide(stream, path, first, stop) for path, _, first, stop, _ in parts]
        numbers_of_parts = [format_of(x.dtype).decode(x, slot, x.size) for x in values]
        straight = np.concatenate([*numbers_of_parts, np.empty(0, np.float32)])
        turned = straight.reshape(leaf.array.shape).transpose(order).reshape(-1)
        return *codes.codes_and_scales(codes.encode(turned, self._signed[stream], None)), order

    def _refresh_copies(self, leaves: list[SavedLeaf]) -> None:
        """Round the parameters into copy_to, as the constructor does."""
        if self._opt.copy_to is None:
            return
        copies = Structure(self._opt.copy_to).leaves
        for leaf, copy in zip(leaves, copies, strict=True):
            array = copy.array if hasattr(copy, "views") else copy
            values = leaf.home.get(leaf.array)
            with np.errstate(all="ignore"):
                leaf.home.write(array, values.astype(np.float32).astype(array.dtype))
