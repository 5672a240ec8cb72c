"""What the kernels share: the formulas of csrc/common, in Triton.

Triton divides float32 approximately and contracts a product and a sum into one rounding unless it
is kept from it, and both would let two back-ends disagree about a rank. `divide` and `perturb` are
the ways around that; tests/test_triton_compiled.py looks for both in the machine code.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def compute_type(dtype):
    """C: float64 for float64 scores, float32 for all others."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def read_lam(lam, C: tl.constexpr):
    """The value of lam in C, from a pointer or from the bits of a double.

    A float argument would be float32.
    """
    if lam.dtype.is_ptr():
        value = tl.load(lam)
    else:
        value = lam.to(tl.float64, bitcast=True)
    return value.to(C)


@triton.jit
def read_flags(pointers, mask):
    """Bools, False outside the mask; torch's analysis of a kernel takes them for bytes."""
    return tl.load(pointers, mask=mask, other=0) != 0


@triton.jit
def perturb(a, lam, g, DESCENDING: tl.constexpr):
    """The sum a + lam g, and a - lam g for ascending ranks: two roundings, product and sum.

    All in C and of one shape, or lam a scalar. The sum with 0 makes the product an instruction of
    its own, which nothing contracts; that it turns -0 into 0 no rank can tell.
    """
    step = tl.fma(lam, g, tl.zeros_like(g))
    if DESCENDING:
        moved = a + step
    else:
        moved = a - step
    return moved


@triton.jit
def divide(a, b):
    """The quotient a / b, rounded correctly."""
    if a.dtype == tl.float32:
        quotient = tl.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
def integer_power(x, exponent):
    """The power x^exponent, by repeated multiplication, of which none is contracted with a sum."""
    power = tl.zeros_like(x) + 1
    for _ in range(0, exponent):
        power = tl.fma(power, x, tl.zeros_like(x))
    return power


@triton.jit
def ascending_key(a):
    """A signed integer of the width of the score, ascending with it; -0 and 0 share one. No NaN.

    Unsigned integers are compared by it, too: int32 for all that are narrower.
    """
    if a.dtype.is_floating():
        BITS: tl.constexpr = a.dtype.primitive_bitwidth
        if BITS == 64:
            bits = a.to(tl.int64, bitcast=True)
        elif BITS == 32:
            bits = a.to(tl.int32, bitcast=True)
        else:
            bits = a.to(tl.int16, bitcast=True)
        # Below 0 a larger magnitude is a lower score. A sign alone becomes 0.
        LOW: tl.constexpr = -(2 ** (BITS - 1))
        key = tl.where(bits < 0, LOW - bits, bits)
    elif a.dtype == tl.uint64:
        key = (a ^ (1 << 63)).to(tl.int64, bitcast=True)
    elif a.dtype == tl.uint32:
        key = (a ^ (1 << 31)).to(tl.int32, bitcast=True)
    elif a.dtype == tl.int64 or a.dtype == tl.int32:
        key = a
    else:
        key = a.to(tl.int32)
    return key
