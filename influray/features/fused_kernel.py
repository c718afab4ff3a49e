"""The inner step as one Triton kernel: square, direction, sign and place of every coordinate in one pass.

Importing this imports triton. With TRITON_INTERPRET=1 in the environment before that, it runs on a CPU.

Suffixes: R rows of a program, C columns of a program; p coordinates of one weight, D feature.
"""

# pyright: reportMissingImports=false
# PyTorch's builds for CUDA bring triton along, those for CPUs do not.

import triton
import triton.language as tl

ROWS, COLUMNS, WARPS = 8, 64, 2  # of a program; the sums of squares are added up in an order that follows from them
SGD, SIGN, ADAM = 0, 1, 2


@triton.jit
def _mix64(value):
    # The constants of projectors/hashing.py, which a kernel can only read as literals.
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def _positive(key, coordinate_C, k):
    """Return whether the sign of each coordinate in row k is +1: bit i % 64 of word (i // 64, k)."""
    row_C = _mix64(key + ((coordinate_C >> 6) + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
    word_C = _mix64(row_C + (k + 1).to(tl.uint64) * 0xD1B54A32D192ED03)
    return ((word_C >> (coordinate_C & 63).to(tl.uint64)) & 1) != 0


@triton.jit(do_not_specialize=["B", "p", "offset", "first_block", "last_block"])
def inner_step(
    grad,  # [B, p] float32
    first,  # [p] float32, read for ADAM with MOMENTUM
    second,  # [p] float32, read for ADAM
    key,  # [1] int64
    shift,  # [blocks, NONZEROS] int32: where a block begins on the ring of columns
    out,  # [B, D] float32, added to
    square,  # [B, programs along D] float64, added to
    B,
    p,
    offset,  # of the first coordinate
    first_block,  # that the coordinates lie in
    last_block,  # and the one after the last
    gain,
    outside,
    scale,  # nonzeros^-1/2
    D: tl.constexpr,
    DIRECTION: tl.constexpr,
    MOMENTUM: tl.constexpr,
    OUTSIDE: tl.constexpr,
    NONZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add a weight's projected direction to `out` and its sums of squares to `square`.

    A program owns its rows and columns of `out` and walks over the blocks in ascending order, so nothing is added by
    two programs and no order is left to chance.
    """
    zero = tl.zeros([1], tl.int64)  # arguments below 2^31 are int32, whose products would overflow
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS) + zero
    column_C = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_B, in_D = row_R < B, column_C < D
    out_RC = out + row_R[:, None] * D + column_C[None, :]
    mine_RC = in_B[:, None] & in_D[None, :]
    key_1 = tl.load(key + zero).to(tl.uint64)

    sum_RC = tl.load(out_RC, mask=mine_RC, other=0.0)
    square_RC = tl.zeros([ROWS, COLUMNS], tl.float64)
    for turn in range(first_block * NONZEROS, last_block * NONZEROS):
        turn_1 = zero + turn
        block_1, k_1 = turn_1 // NONZEROS, turn_1 % NONZEROS
        within_C = column_C - tl.load(shift + turn_1)
        within_C = tl.where(within_C < 0, within_C + D, within_C)
        coordinate_C = block_1 * D + within_C
        place_C = coordinate_C - offset
        here_C = in_D & (place_C >= 0) & (place_C < p)

        grad_RC = tl.load(grad + row_R[:, None] * p + place_C[None, :], mask=in_B[:, None] & here_C[None, :], other=0.0)
        counted_RC = grad_RC
        if NONZEROS > 1:
            counted_RC = tl.where((k_1 == 0)[None, :], grad_RC, 0.0)  # each coordinate once
        wide_RC = counted_RC.to(tl.float64)
        square_RC = tl.fma(wide_RC, wide_RC, square_RC)  # the product of two float32 is exact anyway

        if DIRECTION == 0:  # SGD
            step_RC = grad_RC
        elif DIRECTION == 1:  # SIGN
            step_RC = (grad_RC > 0).to(tl.float32) - (grad_RC < 0).to(tl.float32)
        else:
            second_C = tl.load(second + place_C, mask=here_C, other=1.0)
            denominator_RC = grad_RC * grad_RC + second_C[None, :]
            inverse_RC = 1.0 / (tl.sqrt_rn(denominator_RC) + outside) if OUTSIDE else tl.rsqrt(denominator_RC)
            numerator_RC = grad_RC * gain
            if MOMENTUM:
                numerator_RC += tl.load(first + place_C, mask=here_C, other=0.0)[None, :]
            step_RC = numerator_RC * inverse_RC
        if NONZEROS > 1:
            step_RC *= scale
        # Coordinates outside the slice have a step of zero.
        sum_RC += tl.where(_positive(key_1, coordinate_C, k_1)[None, :], step_RC, -step_RC)

    tl.store(out_RC, sum_RC, mask=mine_RC)
    square_R = square + row_R * tl.num_programs(1) + tl.program_id(1)
    tl.store(square_R, tl.load(square_R, mask=in_B, other=0.0) + tl.sum(square_RC, axis=1), mask=in_B)
