"""Loops compiled by numba, where it is installed: one pass and one call where numpy needs many.

Threads that work side by side lose more time to handing over the interpreter's lock, once per call,
and to fresh memory than to arithmetic: each loop here runs without the lock, on memory that it is
given. The order of every sum is that of `codecs.sums`, and nothing is compiled with fast-math: the
bits are the same with and without numba.
"""

from bitdelta_hub.kernels.native.codes import (
    count_keys,
    int_values,
    lookup,
    pack_cells,
    unpack,
)
from bitdelta_hub.kernels.native.floats import (
    add,
    bf16_difference,
    bf16_gaps,
    energies,
    row_magnitudes,
    row_sums,
)
from bitdelta_hub.kernels.native.jit import start
from bitdelta_hub.kernels.native.signs import add_signed, encode_signs
from bitdelta_hub.kernels.native.steps import (
    choose_16,
    choose_32,
    count_16,
    count_32,
    gather_escapes_16,
    gather_escapes_32,
    join_16,
    join_32,
    pack_planes,
    sort_16,
    sort_32,
    split_16,
    split_32,
    unpack_planes,
    unsort_16,
    unsort_32,
)
from bitdelta_hub.kernels.native.uniform import encode_int

__all__ = [
    "add",
    "add_signed",
    "bf16_difference",
    "bf16_gaps",
    "choose_16",
    "choose_32",
    "count_16",
    "count_32",
    "count_keys",
    "encode_int",
    "encode_signs",
    "energies",
    "gather_escapes_16",
    "gather_escapes_32",
    "int_values",
    "join_16",
    "join_32",
    "lookup",
    "pack_cells",
    "pack_planes",
    "row_magnitudes",
    "row_sums",
    "sort_16",
    "sort_32",
    "split_16",
    "split_32",
    "start",
    "unpack",
    "unpack_planes",
    "unsort_16",
    "unsort_32",
]
