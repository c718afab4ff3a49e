"""Adding a run of coordinates, with signs, at a place on a ring of D columns."""

from __future__ import annotations

from torch import Tensor


def add_rotated(out_BD: Tensor, block_Bc: Tensor, sign_c: Tensor, column: int) -> None:
    """Add block * sign to columns `column`, `column` + 1, ... of `out_BD`, in place; column D is column 0. c <= D.

    Elementwise, and exact but for one addition (signs are +-1), so a row has the same bits on every device and in
    every batch.
    """
    c, D = len(sign_c), out_BD.shape[1]
    head = min(c, D - column)
    out_BD[:, column : column + head].addcmul_(block_Bc[:, :head], sign_c[:head])
    if head < c:
        out_BD[:, : c - head].addcmul_(block_Bc[:, head:], sign_c[head:])
