"""Adds up a gradient that comes as several arrays, a block at a time, into scratch that stays in L1.

The walk steps scratch as if it were the gradient: one text serves any number of arrays, and memory is read once.
"""

from typing import Any

from llvmlite import ir

from ..chores import BLOCK
from ..formats import format_of
from .blocks import each
from .elements import added, columns, storage
from .formats import TEXTS, decode
from .memory import scoped
from .prefetch import PERIOD, ask, asking
from .tracing import Number
from .words import I64, place

SCOPE = 15  # of the sums in scratch: behind those of streams


def add_up(builder: Any, tag: Any, base: Any, start: Any, n: Any, room: Any, clear: bool = False) -> None:
    """Store in `room` n elements, from `start` on, of g's arrays, added in their order in the compute type.

    base: as memory.bases has it. Where g's address lies a number, then as many addresses: of none, which is how the
    zeros of a missed step begin, the sum is 0. clear: zero what has been read.
    """
    g, formats = columns(tag).g, dict(storage(tag))
    p, resting = formats[columns(tag).p], TEXTS[formats[g]].bits
    kind = TEXTS[format_of(p.compute)].bits
    arrays, within = builder.extract_value(base, g), builder.extract_value(base, base.type.count - 2)
    count = builder.load(place(builder, arrays, I64))
    with builder.if_then(builder.icmp_unsigned("==", count, I64(0))), each(builder, I64(0), n) as i:
        builder.store(ir.Constant(kind, 0.0), place(builder, room, kind, i))
    with each(builder, I64(0), count) as j:
        array = builder.load(place(builder, arrays, I64, builder.add(j, I64(1))))
        array, fresh = builder.add(array, within), builder.icmp_unsigned("==", j, I64(0))
        period = PERIOD if asking(tag) else BLOCK
        with each(builder, I64(0), n, period) as at:
            if asking(tag):
                ask(builder, array, builder.add(start, at), formats[g])
            end = builder.add(at, I64(period))
            with each(builder, at, builder.select(builder.icmp_unsigned("<", n, end), n, end)) as i:
                home, total = place(builder, array, resting, builder.add(start, i)), place(builder, room, kind, i)
                x = decode(builder, scoped(builder, builder.load(home), g), formats[g], p)
                before = Number(builder, scoped(builder, builder.load(total), SCOPE))
                new, _ = added((before, Number(builder, x)), fresh)
                scoped(builder, builder.store(new.value, total), SCOPE)
                if clear:
                    scoped(builder, builder.store(ir.Constant(resting, 0), home), g)
