"""(seed, uid, view) to uniform numbers: Philox4x64-10, counter-based and vectorised.

The generator's key is (seed, 0); its counter is (word block, view, uid, stream), the word block
from 1 as numpy.random.Philox counts. Numbers are therefore word for word those of
`numpy.random.Philox(key=[seed, 0], counter=[0, view, uid, stream]).random_raw()`, without a
Generator object for each view. Streams keep the draws of samples apart from those of blocks and
epochs.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; constants of Random123.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_WEYL = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10
_WORDS = 4


class Stream(IntEnum):
    """What numbers are drawn for: views, partners, orders, shuffling, witnesses to check."""

    SAMPLE = 0
    BLOCK = 1
    ORDER = 2
    SHUFFLE = 3
    WITNESS = 4


def philox(counter: U64, key: U64) -> U64:
    """Return Philox4x64-10 of each counter.

    counter: (4, ...) uint64. key: (2,) uint64. returns: (4, ...) uint64, the counter's four words.
    """
    if counter.dtype != np.uint64 or key.dtype != np.uint64:
        raise ValueError("counter and key must be uint64 arrays")
    words = counter.reshape(_WORDS, -1)
    # Words 0 and 2 are multiplied, both at once, and mixed into words 1 and 3. Memory is used
    # again: in small blocks, a call costs more than its numbers.
    even, odd = words[0::2].copy(), words[1::2].copy()
    high, low, cross, part = (np.empty_like(even) for _ in range(4))
    m_low, m_high = _MULTIPLIERS & _LOW, _MULTIPLIERS >> _HALF
    with np.errstate(over="ignore"):
        keys = key[:, None] + _WEYL * np.arange(_ROUNDS, dtype=np.uint64)
        for turn in range(_ROUNDS):
            np.bitwise_and(even, _LOW, out=part)
            np.right_shift(even, _HALF, out=cross)
            np.multiply(m_high, cross, out=high)  # the upper halves, then what the others carry
            np.multiply(m_low, cross, out=cross)
            np.right_shift(np.multiply(m_low, part, out=low), _HALF, out=low)
            np.add(cross, low, out=cross)
            np.multiply(m_high, part, out=part)
            np.add(cross, np.bitwise_and(part, _LOW, out=low), out=cross)
            np.add(high, np.right_shift(part, _HALF, out=part), out=high)
            np.add(high, np.right_shift(cross, _HALF, out=cross), out=high)
            np.multiply(_MULTIPLIERS, even, out=low)
            np.bitwise_xor(high[::-1], odd, out=even)
            np.bitwise_xor(even, keys[:, turn, None], out=even)
            np.copyto(odd, low[::-1])
    return np.stack((even[0], odd[0], even[1], odd[1])).reshape(counter.shape)


def raw_words(
    seed: int,
    uids: U64,
    *,
    view: int,
    count: int,
    first: int = 0,
    stream: Stream = Stream.SAMPLE,
) -> U64:
    """Return words `first` to `first + count - 1` of each uid.

    seed, view: 0 to 2**64 - 1. uids: (N,) uint64. first: a multiple of 4. returns: (N, count)
    uint64.
    """
    if first % _WORDS:
        raise ValueError(f"first is {first}, expected a multiple of {_WORDS}")
    num_blocks = -(-count // _WORDS)
    shape = (len(uids), num_blocks)
    counter = np.empty((_WORDS, *shape), np.uint64)
    counter[0] = np.arange(num_blocks, dtype=np.uint64) + np.uint64(first // _WORDS + 1)
    counter[1] = np.uint64(view)
    counter[2] = uids[:, None]
    counter[3] = np.uint64(stream)
    words = philox(counter, np.array([seed, 0], np.uint64))
    return np.moveaxis(words, 0, -1).reshape(len(uids), num_blocks * _WORDS)[:, :count]


def uniforms(
    seed: int,
    uids: U64,
    *,
    view: int,
    count: int,
    first: int = 0,
    stream: Stream = Stream.SAMPLE,
) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each uid, fixed by the arguments alone.

    As raw_words. returns: (N, count) float64, multiples of 2**-53.
    """
    words = raw_words(seed, uids, view=view, count=count, first=first, stream=stream)
    return (words >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def permutations(
    seed: int, uids: U64, *, view: int, count: int, stream: Stream
) -> NDArray[np.intp]:
    """Return a random permutation of range(count) for each uid, (N, count).

    It is the stable order of `count` drawn words. seed, view: 0 to 2**64 - 1.
    """
    words = raw_words(seed, uids, view=view, count=count, stream=stream)
    return np.argsort(words, axis=1, kind="stable")


def permutation(seed: int, uid: int, *, view: int, count: int, stream: Stream) -> NDArray[np.intp]:
    """Return a random permutation of range(count): the stable order of `count` drawn words.

    seed, uid, view: 0 to 2**64 - 1.
    """
    names = np.array([uid], np.uint64)
    order: NDArray[np.intp] = permutations(seed, names, view=view, count=count, stream=stream)[0]
    return order
