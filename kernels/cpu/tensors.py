"""How PyTorch's tensors lie, asked through torch's C functions in one call for all: see fastadam.torch.native."""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .blocks import put
from .cache import keep
from .ndarray import TYPE, word_at

_I32, _I64 = ir.IntType(32), ir.IntType(64)
FAILED = -1


@intrinsic
def _ask(typing, function, handle):
    """What a C function `int f(handle, result *)` finds; FAILED where it fails."""

    def generate(context, builder, signature, args):
        with builder.goto_entry_block():
            found = builder.alloca(_I64)
        builder.store(_I64(0), found)  # a result may be shorter
        kind = ir.FunctionType(_I32, [_I64, ir.PointerType(_I64)])
        failed = builder.call(builder.inttoptr(args[0], ir.PointerType(kind)), [args[1], found])
        return builder.select(builder.icmp_signed("==", failed, _I32(0)), builder.load(found), _I64(FAILED))

    return types.int64(types.int64, types.int64), generate


def _differing(n, objects, kinds, handle, functions, forms, firsts, homes, apart, fixed):
    """The first of n tensors that lies otherwise than its form says, or -1.

    All are numbers, most of them addresses of int64: Numba takes 0.08 µs for an array. objects: the id() of each
    tensor. kinds: the id() of the two types they may have. handle: where in such an object torch's handle lies.
    functions: the addresses of torch's for layout, dtype, dimensions, sizes, strides and data. forms: of each tensor
    from its number in `firsts` on, the first three results, its sizes and its strides. homes: where the tensors'
    addresses stand, `apart` bytes apart: compared if `fixed`, else written.
    """
    for k in range(n):
        x, form, home = word_at(objects + 8 * k), forms + 8 * word_at(firsts + 8 * k), homes + apart * k
        kind, own = word_at(x + TYPE), x + handle
        if kind != word_at(kinds) and kind != word_at(kinds + 8):
            return k
        for j in range(3):
            if _ask(word_at(functions + 8 * j), own) != word_at(form + 8 * j):
                return k
        dimensions = word_at(form + 16)
        sizes, strides = _ask(word_at(functions + 24), own), _ask(word_at(functions + 32), own)
        if sizes == FAILED or strides == FAILED:
            return k
        size = 1
        for j in range(dimensions):
            size *= word_at(sizes + 8 * j)
            if word_at(sizes + 8 * j) != word_at(form + 24 + 8 * j):
                return k
            if word_at(strides + 8 * j) != word_at(form + 24 + 8 * (dimensions + j)):
                return k
        place = _ask(word_at(functions + 40), own)
        if place == FAILED or (place == 0 and size > 0):
            return k
        if not fixed:
            put(home, 0, place)
        elif word_at(home) != place:
            return k
    return -1


differing = keep(njit(error_model="numpy")(_differing), "differing")
