"""Targets decoded as docs/format.md says, in plain NumPy: what a reader elsewhere would write.

Shares nothing with kdcache on purpose.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]


def _log_sum(values: Floats) -> Floats:
    top: Floats = values.max(-1)
    found: Floats = top + np.log(np.exp(values - top[..., None]).sum(-1))
    return found


def _cubic(at: list[float], values: list[Floats], x: float) -> Floats:
    """Return the cubic through four points (at, values) at x, by solving for its coefficients."""
    coefficients = np.linalg.solve(np.vander(at), np.stack(values))
    found: Floats = (np.vander([x], 4) @ coefficients)[0]
    return found


def _tail(masses: list[Floats], distances: Floats, others: int, temperature: float) -> Floats:
    """Return the log of the tail's mass; masses: its relative log mass at T = 1, 2, 4."""
    m = _cubic([1, 1 / 2, 1 / 4, 0], [*masses, np.full(len(distances), np.log(others))],
               1 / temperature)  # fmt: skip
    found: Floats = -np.log1p(np.exp(_log_sum(-distances / temperature) - m))
    return found


def decode(encoding: str, arrays: Arrays, *, num_classes: int, temperature: float) -> Floats:
    """Return log-probabilities (rows, classes) of usable rows; what is not kept shares the tail.

    arrays: of usable rows; for adaptive, one row with its own entries.
    """
    kind, _, detail = encoding.partition(":")
    if kind == "dense":
        if detail == "f2":
            logits = arrays["logits"].astype(float)
        else:
            logits = -arrays["ranges"].astype(float) * arrays["codes"] / 255
        scaled = logits / temperature
        return scaled - _log_sum(scaled)[:, None]
    stored = [1.0, 2.0, 4.0]
    if kind == "topk":
        classes = arrays["indices"].astype(np.int64)
        distances = 32 * (arrays["values"] / 255) ** 2
        tails = arrays["tails"].astype(float)
        odds = [tails[:, i] - np.log(1 - np.exp(tails[:, i])) for i in range(3)]
    else:
        classes = np.cumsum(arrays["gaps"].astype(np.int64) + 1, axis=1) - 1
        distances = np.exp(arrays["codes"] / 48) - 1
        odds = [arrays["tails"][:, i] / 8 - 20 for i in range(3)]
    others = num_classes - classes.shape[1]
    own = -distances / temperature - _log_sum(-distances / temperature)[:, None]
    if others == 0:
        out = np.empty((len(classes), num_classes))
        np.put_along_axis(out, classes, own, axis=1)
        return out
    if temperature in stored:
        x = odds[stored.index(temperature)]
        tail = -np.log1p(np.exp(-x))
    else:
        masses = [x + _log_sum(-distances / t) for t, x in zip(stored, odds, strict=True)]
        tail = _tail(masses, distances, others, temperature)
    out = np.repeat((tail - np.log(others))[:, None], num_classes, axis=1)
    np.put_along_axis(out, classes, np.log(1 - np.exp(tail))[:, None] + own, axis=1)
    return out


def rows_of(encoding: str, stored: Arrays, *, rows: int) -> list[Arrays | None]:
    """Return the entries of each row of a tile, apart; None for a row that is not usable."""
    missing = {"dense:f2": "logits", "dense:u1": "ranges"}.get(encoding, "tails")
    found: list[Arrays | None] = []
    start = 0
    for row in range(rows):
        count = int(stored["counts"][row, 0]) if "counts" in stored else 0
        entries = slice(start, start + count)
        start += count
        one = {
            name: array[None, entries] if "counts" in stored and array.ndim == 1 else array[[row]]
            for name, array in stored.items()
        }
        fill = one[missing].flat[0]
        unusable = fill == 255 if one[missing].dtype == np.uint8 else np.isnan(fill)
        found.append(None if unusable else one)
    return found
