"""Random words and signs as functions of (seed, coordinate, column), equal on CPU and GPU."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

GOLDEN, SECOND = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


def mix64(value: Tensor) -> Tensor:
    """Return a bijective hash of int64 values, read as unsigned 64-bit numbers; equal on CPU and GPU.

    Source: the finalizer of splitmix64 (Steele, Lea and Flood 2014; constants of Stafford's Mix13).
    """
    value = (value ^ _shift_right(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift_right(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift_right(value, 31)


def hash_key(seed: int, device: torch.device) -> Tensor:
    """Return what a seed is to all its words, one int64."""
    return mix64(torch.tensor(_signed(seed % 2**64), device=device) + _signed(GOLDEN))


def hash_words(seed: int, start: int, stop: int, columns: int, device: torch.device) -> Tensor:
    """Return one 64-bit word for every coordinate in [start, stop) and column, [stop - start, columns] int64.

    fused_kernel.py makes the same words.
    """
    row_c = mix64(hash_key(seed, device) + torch.arange(start + 1, stop + 1, device=device) * _signed(GOLDEN))
    return mix64(row_c[:, None] + torch.arange(1, columns + 1, device=device) * _signed(SECOND))


def below(word: Tensor, limit: int) -> Tensor:
    """Return the upper 32 bits of each word scaled to [0, limit): uniform up to limit / 2^32."""
    return (_shift_right(word, 32) * limit) >> 32


class SignBits:
    """Turns the bits of words into numbers, `entry` for a one and -`entry` for a zero, lowest bit first."""

    def __init__(self, entry: float, device: torch.device) -> None:
        assert sys.byteorder == "little", "signs are read from the bytes of a word, lowest first"
        table = [[entry if byte >> bit & 1 else -entry for bit in range(8)] for byte in range(256)]
        self._signs_of_byte = torch.tensor(table, dtype=torch.float32, device=device)

    def of_words(self, word_nw: Tensor) -> Tensor:
        """Return [n, 64 w] float32 of words [n, w]."""
        # A table lookup turns a byte into eight signs at once; single bits would take eight passes more.
        byte = word_nw.clone(memory_format=torch.contiguous_format).view(torch.uint8)
        return F.embedding(byte.int(), self._signs_of_byte).view(len(word_nw), -1)


def coordinate_signs(bits: SignBits, seed: int, start: int, stop: int, rows: int, device: torch.device) -> Tensor:
    """Return `rows` signs for each coordinate of [start, stop), [rows, stop - start] float32.

    The sign of coordinate i in row k is bit i % 64 of word (i // 64, k).
    """
    first, last = start // 64, -(-stop // 64)
    word_kn = hash_words(seed, first, last, rows, device).t()
    return bits.of_words(word_kn)[:, start - 64 * first : stop - 64 * first]


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # torch's >> of int64 copies the sign; the mask takes those copies away.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
