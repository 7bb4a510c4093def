"""Says what a walk draws its random bits from: the key in a row of coefficients, and an element's index among all."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .elements import stochastic
from .formats import draws_from
from .words import I64, place

TURN = 1 << 32  # elements whose random bits begin anew


@intrinsic
def key(typing, tag, end):
    """Return what a row says of randomness: the last of the chores' numbers, all its bits kept; None if nothing is
    drawn."""

    def generate(context, builder, signature, args):
        if not stochastic(tag):
            return context.get_dummy_value()
        return builder.load(place(builder, args[1], ir.DoubleType(), I64(-1)))

    return (types.float64 if stochastic(tag) else types.none)(tag, types.int64), generate


@intrinsic
def random_start(typing, tag, key, first, at):
    """Return what is mixed for element first + at, or None where a tag draws nothing."""

    def generate(context, builder, signature, args):
        return draws_from(builder, *args[1:]) if stochastic(tag) else context.get_dummy_value()

    return (types.uint32 if stochastic(tag) else types.none)(tag, key, types.uint64, types.uint64), generate


@intrinsic
def random_end(typing, tag, first, at, end):
    """Return how far what begins at element `at` serves: to the next multiple of 2^32 of the index, if it lies before
    end."""

    def generate(context, builder, signature, args):
        if not stochastic(tag):
            return args[3]
        _, first, at, end = args
        index = builder.and_(builder.add(first, at), I64(TURN - 1))
        turn = builder.add(at, builder.sub(I64(TURN), index))
        return builder.select(builder.icmp_unsigned("<", turn, end), turn, end)

    return types.uint64(tag, *[types.uint64] * 3), generate
