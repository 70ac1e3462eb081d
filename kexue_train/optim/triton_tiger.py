"""The kernels of ``FusedTiger``, in Triton; imported only where CUDA is used.

Arithmetic is fp32 whatever the tensors hold; bf16 is stored rounded by the hash of ``random_bits``. Every sum of two
products is written as a rounded product and a fused multiply-add, as PyTorch's own kernels compute it, so that no
compiler is left to choose.

Memory is all that these kernels wait for. Bytes of device memory per parameter:

    kernel              fp32 states    bf16 states    touches
    check_gradients     4              2              reads g
    fold_gradients      8 (12)         4 (6)          reads and writes m; g again, from memory if the cache is too small
    sum_tile_squares    4              2              reads θ
    move_tiles          12             6              reads m, reads and writes θ

Tensors lie anywhere, so the kernels over all of them read what to work on from a table, a tile of a tensor per
program: some rows of an embedding, or of a matrix cut into lines. An address from a table says nothing about its
alignment; a column tells whether the tile can be read in vectors of 16 bytes without looking for its end.

Gradients lie elsewhere in every micro-batch, so up to eight of them are arguments of the kernels that fold them, and
the table has what stays: address of the momentum, number of elements, and number of the stream of random bits. The host
so copies nothing to the device, and a captured graph finds the gradients where they were when it was captured.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kexue_train.optim import random_bits

GRADIENTS = 8
"""Gradients that ``check_gradients`` and ``fold_gradients`` take at once."""
CHUNK = 4096
"""Elements of a gradient that a program of these reads at a time; even."""
TILE_ROWS, TILE_COLUMNS = 32, 128
"""What a program of ``sum_tile_squares`` and ``move_tiles`` reads at a time: 32 rows, 128 columns of each."""
SPAN = 1024
"""Sums that ``add_tile_squares`` reads at a time."""
CHECKERS = 512
"""Programs of ``check_gradients`` for one gradient at most: enough to read at full speed, few enough that every program
of ``fold_gradients`` can ask all."""
WARPS = 8
"""Warps of all kernels but ``add_tile_squares``: 16 elements per thread, so that enough threads fit on a processor."""
WIDE = 1 << 62
"""In numbers of streams that come as ints; those are below it."""

_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(random_bits.MULTIPLIER_0), tl.constexpr(random_bits.MULTIPLIER_1)
_START_0, _START_1 = tl.constexpr(random_bits.START_0), tl.constexpr(random_bits.START_1)
_INFINITY = tl.constexpr(float("inf"))
_EDGE_COLUMNS = tl.constexpr(32)  # what is read with care takes many registers, which all programs would hold
_NARROW = tl.constexpr(WIDE - 1)
_NAN_BITS = tl.constexpr(0x7FC00000)
_DIFFERS = [f"{name}_{number}" for name in ("grad", "index", "end") for number in range(GRADIENTS)] + ["seed", "stream"]
"""Arguments that differ from launch to launch, for whose values no kernel is compiled anew."""


@triton.jit(do_not_specialize=_DIFFERS)
def check_gradients(
    tensors, flags, verdicts,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7,
    index_0, index_1, index_2, index_3, index_4, index_5, index_6, index_7,
    end_0, end_1, end_2, end_3, end_4, end_5, end_6,
    checkers: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Read chunks of the gradients, of n programs of one every n-th; store in verdict and flag whether all is finite.

    Programs ``end_0 ... end_1 - 1`` read ``grad_1``, that of tensor ``index_1``, and so on.
    """
    program = tl.program_id(0)
    which = _which(program, end_0, end_1, end_2, end_3, end_4, end_5, end_6)
    index = _choose(which, index_0, index_1, index_2, index_3, index_4, index_5, index_6, index_7)
    first = _choose(which, 0, end_0, end_1, end_2, end_3, end_4, end_5, end_6)
    behind = _choose(which, end_0, end_1, end_2, end_3, end_4, end_5, end_6, tl.num_programs(0))
    address = _choose_address(which, grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    grad, numel = address.to(grad_0.dtype), tl.load(tensors + index * 3 + 1)
    offsets = tl.arange(0, block)
    bad = tl.zeros((block,), tl.int32)
    for start in range((program - first).to(tl.int64) * block, numel, (behind - first).to(tl.int64) * block):
        if (start + block <= numel) & (address % 16 == 0):
            values = tl.load(tl.multiple_of(grad + start + offsets, 16)).to(tl.float32)
        else:
            values = tl.load(grad + start + offsets, mask=offsets < numel - start, other=0.0).to(tl.float32)
        bad |= tl.where(tl.abs(values) < _INFINITY, 0, 1)
    verdict = tl.max(bad, 0)
    tl.store(verdicts + index * checkers + (program - first), verdict)
    if verdict != 0:
        tl.store(flags + index, 1.0)  # whoever comes last writes the same


@triton.jit(do_not_specialize=_DIFFERS)
def fold_gradients(
    tensors, verdicts,
    grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7,
    index_0, index_1, index_2, index_3, index_4, index_5, index_6, index_7,
    end_0, end_1, end_2, end_3, end_4, end_5, end_6,
    decay, weight, seed, stream,
    momentum_type: tl.constexpr, checkers: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Compute one chunk of m ← decay·m + weight·g of one of the gradients, unless a verdict is against that."""
    program = tl.program_id(0)
    which = _which(program, end_0, end_1, end_2, end_3, end_4, end_5, end_6)
    index = _choose(which, index_0, index_1, index_2, index_3, index_4, index_5, index_6, index_7)
    first = _choose(which, 0, end_0, end_1, end_2, end_3, end_4, end_5, end_6)
    address = _choose_address(which, grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7)
    home = tl.load(tensors + index * 3)
    numel, number = tl.load(tensors + index * 3 + 1), tl.load(tensors + index * 3 + 2)
    bad = tl.max(tl.load(verdicts + index * checkers + tl.arange(0, checkers)), 0)
    start = (program - first).to(tl.int64) * block
    if bad == 0:
        grad, momentum = address.to(grad_0.dtype) + start, home.to(tl.pointer_type(momentum_type)) + start
        if (start + block <= numel) & ((address | home) % 16 == 0):
            _fold_chunk(momentum, grad, start, numel, decay, weight, seed, stream, number, block, True)
        else:
            _fold_chunk(momentum, grad, start, numel, decay, weight, seed, stream, number, block, False)


@triton.jit
def _fold_chunk(
    momentum, grad, start, numel, decay, weight, seed, stream, number, block: tl.constexpr, is_whole: tl.constexpr
):
    offsets = tl.arange(0, block)
    momenta, grads = momentum + offsets, grad + offsets
    if is_whole:
        mask = None
        momenta, grads = tl.multiple_of(momenta, 16), tl.multiple_of(grads, 16)
    else:
        mask = offsets < numel - start
    before, part = tl.load(momenta, mask=mask).to(tl.float32), tl.load(grads, mask=mask).to(tl.float32)
    after = tl.fma(part, weight, before * decay)
    if momentum.dtype.element_ty == tl.bfloat16:
        key_0, key_1 = _stream_keys(seed, stream, number)
        words = _words((start + 2 * tl.arange(0, block // 2)).to(tl.uint32), key_0, key_1)
        after = _rounded(after, tl.interleave(words & 0xFFFF, words >> 16))
    tl.store(momenta, after, mask=mask)


@triton.jit
def _which(program, end_0, end_1, end_2, end_3, end_4, end_5, end_6):
    """Return the number of the gradient that a program works on: as many as end before it."""
    before = (program >= end_0).to(tl.int32) + (program >= end_1).to(tl.int32) + (program >= end_2).to(tl.int32)
    before += (program >= end_3).to(tl.int32) + (program >= end_4).to(tl.int32) + (program >= end_5).to(tl.int32)
    return before + (program >= end_6).to(tl.int32)


@triton.jit
def _choose(which, value_0, value_1, value_2, value_3, value_4, value_5, value_6, value_7):
    value = tl.where(which == 1, value_1, value_0)
    value = tl.where(which == 2, value_2, value)
    value = tl.where(which == 3, value_3, value)
    value = tl.where(which == 4, value_4, value)
    value = tl.where(which == 5, value_5, value)
    value = tl.where(which == 6, value_6, value)
    return tl.where(which == 7, value_7, value)


@triton.jit
def _choose_address(which, grad_0, grad_1, grad_2, grad_3, grad_4, grad_5, grad_6, grad_7):
    return _choose(
        which,
        grad_0.to(tl.int64), grad_1.to(tl.int64), grad_2.to(tl.int64), grad_3.to(tl.int64),
        grad_4.to(tl.int64), grad_5.to(tl.int64), grad_6.to(tl.int64), grad_7.to(tl.int64),
    )  # fmt: skip


@triton.jit
def sum_tile_squares(tiles, sums, parameter_type: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr):
    """Add up the squares of one tile: of each row, or of all of it."""
    tile = tiles + tl.program_id(0) * 10
    parameter = tl.load(tile).to(tl.pointer_type(parameter_type))
    left, width = tl.load(tile + 3).to(tl.int32), tl.load(tile + 4).to(tl.int32)
    scalar_stride, target = tl.load(tile + 6), tl.load(tile + 7)
    if tl.load(tile + 9) != 0:
        sum_of_rows = _row_squares(parameter, left, width, rows, columns, True)
    else:
        sum_of_rows = _row_squares(parameter, left, width, rows, _EDGE_COLUMNS, False)
    if scalar_stride != 0:
        row = tl.arange(0, rows)
        tl.store(sums + target + row, sum_of_rows, mask=row * width < left)
    else:
        tl.store(sums + target, tl.sum(sum_of_rows, 0))


@triton.jit
def _row_squares(parameter, left, width, rows: tl.constexpr, columns: tl.constexpr, is_whole: tl.constexpr):
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    total = tl.zeros((rows, columns), tl.float32)
    for start in range(0, width, columns):
        place = row * width + (start + column)
        if is_whole:
            value = tl.load(tl.multiple_of(parameter + place, (1, 16))).to(tl.float32)
        else:
            mask = (start + column < width) & (place < left)
            value = tl.load(parameter + place, mask=mask, other=0.0).to(tl.float32)
        total += value * value
    return tl.sum(total, 1)


@triton.jit
def add_tile_squares(spans, sums, block: tl.constexpr):
    """Add the sums of the tiles of one tensor, always in the same order."""
    span = spans + tl.program_id(0) * 3
    first, count, target = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    offsets = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for start in range(0, count, block):
        total += tl.load(sums + first + start + offsets, mask=start + offsets < count, other=0.0)
    tl.store(sums + target, tl.sum(total, 0))


@triton.jit(do_not_specialize=["seed", "stream"])
def move_tiles(
    tiles, step, decay, dead_zone, seed, stream,
    parameter_type: tl.constexpr, momentum_type: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Compute θ ← θ - (step·sign(m) + decay·θ) in one tile."""
    tile = tiles + tl.program_id(0) * 10
    parameter = tl.load(tile).to(tl.pointer_type(parameter_type))
    momentum = tl.load(tile + 1).to(tl.pointer_type(momentum_type))
    start, left, width = tl.load(tile + 2).to(tl.uint32), tl.load(tile + 3).to(tl.int32), tl.load(tile + 4).to(tl.int32)
    row = tl.arange(0, rows)[:, None]
    scalar, exists = tl.load(tile + 5) + row * tl.load(tile + 6), row * width < left
    step, decay = tl.load(step + scalar, mask=exists, other=0.0), tl.load(decay + scalar, mask=exists, other=0.0)
    key_0, key_1 = _stream_keys(seed, stream, tl.load(tile + 8))
    if tl.load(tile + 9) != 0:
        _move_tile(parameter, momentum, start, left, width, step, decay, dead_zone, key_0, key_1, rows, columns, True)
    else:
        _move_tile(
            parameter, momentum, start, left, width, step, decay, dead_zone, key_0, key_1, rows, _EDGE_COLUMNS, False
        )


@triton.jit
def _move_tile(
    parameter, momentum, start, left, width, step, decay, dead_zone, key_0, key_1,
    rows: tl.constexpr, columns: tl.constexpr, is_whole: tl.constexpr,
):  # fmt: skip
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    for begin in range(0, width, columns):
        place = row * width + (begin + column)
        parameters, momenta = parameter + place, momentum + place
        if is_whole:
            mask = None
            parameters, momenta = tl.multiple_of(parameters, (1, 16)), tl.multiple_of(momenta, (1, 16))
        else:
            mask = (begin + column < width) & (place < left)
        before = tl.load(parameters, mask=mask).to(tl.float32)
        direction = tl.load(momenta, mask=mask).to(tl.float32)
        signed = tl.where(direction > 0, step, tl.where(direction < 0, -step, 0.0))
        signed = tl.where(tl.abs(direction) < dead_zone, 0.0, signed)
        after = before - tl.fma(before, decay, signed)
        after = tl.where((step != 0) | (decay != 0), after, before)  # what rests may be infinite, and 0·∞ is NaN
        if parameter.dtype.element_ty == tl.bfloat16:
            if is_whole:
                pair = tl.arange(0, columns // 2)[None, :]
                words = _words(start + (row * width + begin + 2 * pair).to(tl.uint32), key_0, key_1)
                bits = tl.interleave(words & 0xFFFF, words >> 16)
            else:  # a row may begin with the second of a pair
                element = start + place.to(tl.uint32)
                words = _words(element, key_0, key_1)
                bits = tl.where((element & 1) != 0, words >> 16, words & 0xFFFF)
            after = _rounded(after, bits)
        tl.store(parameters, after, mask=mask)


@triton.jit
def _rounded(values, bits):
    """Round fp32 to bf16 by 16 random bits each, as ``round_stochastically`` does."""
    raised = values.to(tl.uint32, bitcast=True) + bits
    kept = tl.where(values == values, raised, _NAN_BITS) >> 16
    return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _stream_keys(seed, stream, number):
    """Return ``stream_key`` of ``stream + number``; both may be pointers, so that a captured graph can count on."""
    if seed.dtype.is_ptr():
        seed = tl.load(seed)
    if stream.dtype.is_ptr():
        stream = tl.load(stream)
    seed, stream = seed.to(tl.int64), (stream.to(tl.int64) & _NARROW) + number
    return _stream_key(seed, stream, _START_0), _stream_key(seed, stream, _START_1)


@triton.jit
def _stream_key(seed, stream, start: tl.constexpr):
    key = _finalised(seed.to(tl.uint32) ^ start)
    key = _finalised(key ^ (seed >> 32).to(tl.uint32))
    key = _finalised(key ^ stream.to(tl.uint32))
    key = _finalised(key ^ (stream >> 32).to(tl.uint32))
    return _finalised(key)


@triton.jit
def _words(element, key_0, key_1):
    """Return the 32 random bits of the pair that each element is in."""
    return _finalised(_finalised((element >> 1) ^ key_0) ^ key_1)


@triton.jit
def _finalised(word):
    word = (word ^ (word >> 16)) * _MULTIPLIER_0
    word = (word ^ (word >> 15)) * _MULTIPLIER_1
    return word ^ (word >> 15)
