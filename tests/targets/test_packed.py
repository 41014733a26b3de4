"""Claims about packed and adaptive targets: bounds, the right classes, none mispaired."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.cache.shard import encode_tile
from kdcache.errors import UsageError
from kdcache.targets.encoding import Encoding, parse_encoding, to_arrays
from kdcache.targets.fidelity import NO_ROWS, measure
from kdcache.targets.packed import MAX_KEPT, NONE, Arrays, Packed, from_stored, to_stored
from kdcache.targets.target import TAIL_TEMPERATURES, Fields
from pipelines.bench.logits import simulate_logits
from tests.targets.logits import classifier_logits, logits_and_k, some_logits

LEASTS = (1.0, 0.3, 0.05, 0.01, 0.001, 1e-5)
TOP_DISTANCE = 0.0211  # the least distance below the largest

temperatures = st.sampled_from(TAIL_TEMPERATURES)


def exact(logits_NC: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits_NC.double() / temperature).log_softmax(1)


def stored(encoding: Encoding, logits_NC: Tensor, *, room: int = 2) -> Arrays:
    """Return the encoded arrays after a trip through storage, as a reader holds them."""
    specs = encoding.specs(logits_NC.shape[1])
    num_rows = len(logits_NC)
    rows = to_arrays(encoding.encode(logits_NC), specs)
    arrays = to_stored(rows, specs, num_rows=num_rows + room)
    for spec in specs:
        assert arrays[spec.name].dtype == spec.dtype
        assert arrays[spec.name].size == (num_rows + room) * spec.width
    return from_stored(arrays, specs, num_rows=num_rows)


def fields_of(arrays: Arrays) -> Fields:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def kept_by(fields: Fields, num_classes: int) -> Tensor:
    """Return which classes are kept, bool (N, C)."""
    present = fields["codes"] != NONE
    classes = ((fields["gaps"].long() + 1).cumsum(1) - 1).masked_fill(~present, num_classes)
    wide = torch.zeros(len(classes), num_classes + 1, dtype=torch.bool)
    return wide.scatter(1, classes, present)[:, :num_classes]


@st.composite
def packings(draw: st.DrawFn) -> tuple[Tensor, Packed]:
    """Draw logits and an encoding of them, packed or adaptive."""
    if draw(st.booleans()):
        logits, k = draw(logits_and_k())
        return logits, Packed(k)
    logits = draw(some_logits())
    found = parse_encoding(f"adaptive:{draw(st.sampled_from(LEASTS))}", logits.shape[1])
    assert isinstance(found, Packed)
    return logits, found


# --- the stated bounds ---------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(drawn=packings())
def test_distances_and_tails_are_stored_within_the_stated_bounds(
    drawn: tuple[Tensor, Packed],
) -> None:
    logits, encoding = drawn
    num_classes = logits.shape[1]
    fields = fields_of(stored(encoding, logits))
    kept = kept_by(fields, num_classes)
    below = (logits.double().amax(1, keepdim=True) - logits.double())[kept]
    codes = fields["codes"][fields["codes"] != NONE].double()  # by row and class, as below
    found = torch.expm1(codes / 48)
    error = (found - below).abs()
    close = (below < TOP_DISTANCE) & (found < TOP_DISTANCE)
    near = ~close & (below <= 197)
    assert (error[near] <= 0.0105 * (1 + below[near])).all()
    assert (found[below > 198] > 197).all()
    for column, temperature in enumerate(TAIL_TEMPERATURES):
        log_probs = exact(logits, temperature)
        rest = log_probs.masked_fill(kept, -math.inf).logsumexp(1)
        odds = (rest - log_probs.masked_fill(~kept, -math.inf).logsumexp(1)).clamp(-20, 11.75)
        assert ((fields["tails"][:, column].double() / 8 - 20 - odds).abs() <= 1 / 16 + 1e-3).all()


@settings(deadline=None, max_examples=100)
@given(drawn=packings())
def test_the_largest_class_is_kept_and_stays_alone(drawn: tuple[Tensor, Packed]) -> None:
    logits, encoding = drawn
    fields = fields_of(stored(encoding, logits))
    target = encoding.decode(fields, num_classes=logits.shape[1], temperature=1.0)
    assert target.indices_NK is not None
    best = target.log_probs_NK.argmax(1, keepdim=True)
    largest = logits.gather(1, target.indices_NK.gather(1, best))
    assert (logits.amax(1, keepdim=True) - largest <= 2e-5).all()
    if encoding.k > 1:
        first, second = target.log_probs_NK.topk(2, dim=1).values.unbind(1)
        assert (first - second > 0.02).all()


def test_the_largest_class_of_a_classifier_is_always_the_decoded_one() -> None:
    logits = classifier_logits(400)
    for text in ("packed:1", "packed:32", "adaptive:0.5", "adaptive:0.002"):
        encoding = parse_encoding(text, 1000)
        fields = fields_of(stored(encoding, logits))
        target = encoding.decode(fields, num_classes=1000, temperature=1.0)
        assert target.dense(1000).argmax(1).equal(logits.argmax(1))


# --- which classes are kept ----------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(drawn=logits_and_k())
def test_packed_keeps_the_k_largest(drawn: tuple[Tensor, int]) -> None:
    logits, k = drawn
    kept = kept_by(fields_of(stored(Packed(k), logits)), logits.shape[1])
    assert (kept.sum(1) == k).all()
    # Classes closer than float32 tells apart after log_softmax may stand in for each other.
    least = logits.masked_fill(~kept, math.inf).amin(1)
    greatest = logits.masked_fill(kept, -math.inf).amax(1)
    resolution = 2e-6 * (16 + logits.amax(1) - least)
    assert (greatest <= least + resolution).all()


@settings(deadline=None, max_examples=100)
@given(logits=some_logits(), least=st.sampled_from(LEASTS))
def test_adaptive_keeps_what_is_likely_enough_and_the_largest(logits: Tensor, least: float) -> None:
    num_classes = logits.shape[1]
    encoding = parse_encoding(f"adaptive:{least}", num_classes)
    kept = kept_by(fields_of(stored(encoding, logits)), num_classes)
    counts = kept.sum(1)
    assert (counts >= 1).all()
    assert (counts <= min(MAX_KEPT, num_classes)).all()
    probs = exact(logits, 2.0).exp()
    likely = probs >= least * (1 + 1e-4)
    full = counts == MAX_KEPT
    assert not (likely & ~kept)[~full].any()
    unlikely = probs < least * (1 - 1e-4)
    assert ((unlikely & kept).sum(1) <= (counts == 1)).all()  # only the largest, when it is alone
    lowest = probs.masked_fill(~kept, math.inf).amin(1)
    assert (probs.masked_fill(kept, 0).amax(1) <= lowest * (1 + 1e-4)).all()


@settings(deadline=None, max_examples=100)
@given(drawn=packings())
def test_classes_ascend_and_absent_entries_come_last(drawn: tuple[Tensor, Packed]) -> None:
    logits, encoding = drawn
    num_classes = logits.shape[1]
    arrays = stored(encoding, logits)
    target = encoding.decode(fields_of(arrays), num_classes=num_classes, temperature=1.0)
    indices = target.indices_NK
    assert indices is not None
    assert indices.dtype == torch.int64
    assert ((indices.diff(dim=1) > 0) | (indices[:, 1:] == num_classes)).all()
    assert ((indices >= 0) & (indices <= num_classes)).all()
    assert ((target.log_probs_NK == -math.inf) == (indices == num_classes)).all()
    assert encoding.in_range(arrays, num_classes)
    assert encoding.usable(arrays).all()


# --- decoded targets -----------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(drawn=packings(), temperature=st.floats(1, 4))
@example(drawn=(torch.zeros(1, 2), Packed(1)), temperature=3.0)
@example(drawn=(torch.zeros(1, 2), Packed(2)), temperature=3.0)
def test_a_decoded_target_is_a_distribution(
    drawn: tuple[Tensor, Packed], temperature: float
) -> None:
    logits, encoding = drawn
    num_classes = logits.shape[1]
    fields = fields_of(stored(encoding, logits))
    target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
    assert target.log_probs_NK.dtype == target.log_tail_N.dtype == torch.float32
    mass = target.log_probs_NK.double().exp().sum(1) + target.log_tail_N.double().exp()
    assert (mass - 1).abs().max() < 1e-5
    spread = target.dense(num_classes).double()
    assert not spread.isnan().any()
    assert (spread.exp().sum(1) - 1).abs().max() < 1e-4
    whole = kept_by(fields, num_classes).all(1)
    assert ((target.log_tail_N == -math.inf) == whole).all()


@settings(deadline=None, max_examples=100)
@given(drawn=packings(), temperature=temperatures)
def test_log_probabilities_are_off_by_what_distances_and_tail_allow(
    drawn: tuple[Tensor, Packed], temperature: float
) -> None:
    """With all classes kept this is the bound of the whole log-softmax."""
    logits, encoding = drawn
    logits = logits.clamp(min=logits.amax(1, keepdim=True) - 190)
    num_classes = logits.shape[1]
    fields = fields_of(stored(encoding, logits))
    kept = kept_by(fields, num_classes)
    target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
    found, expected = target.dense(num_classes).double(), exact(logits, temperature)
    below = logits.double().amax(1, keepdim=True) - logits.double()
    entry = (0.0105 * (1 + below)).clamp(min=TOP_DISTANCE) / temperature
    shares = expected.masked_fill(~kept, -math.inf).softmax(1)
    normaliser = (shares * entry.exp()).sum(1, keepdim=True).log()
    # Odds off by a 16th move the mass kept by no more; odds below e^-20 are e^-20, above, e^11.75.
    tail = expected.masked_fill(kept, -math.inf).logsumexp(1, keepdim=True)
    clipped = (tail - torch.log1p(-tail.exp()) - 11.75).clamp(min=0).nan_to_num(0)
    bound = entry + normaliser + 1 / 16 + 2e-3 + clipped
    assert ((found - expected).abs() <= bound)[kept].all()


def test_all_classes_kept_give_the_log_softmax() -> None:
    logits = 3 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    for text in ("packed:12", "adaptive:1e-9"):
        encoding = parse_encoding(text, 12)
        fields = fields_of(stored(encoding, logits))
        for temperature in (1.0, 1.7, 4.0):
            target = encoding.decode(fields, num_classes=12, temperature=temperature)
            assert (target.log_tail_N == -math.inf).all()
            bound = 2 * 0.0105 * (1 + logits.amax(1) - logits.amin(1))[:, None] / temperature
            assert ((target.dense(12) - exact(logits, temperature)).abs() <= bound).all()


def test_rows_of_one_batch_keep_from_one_class_to_all() -> None:
    logits = torch.stack([torch.eye(9)[4] * 40, torch.zeros(9), torch.arange(9.0)])
    encoding = parse_encoding("adaptive:0.05", 9)
    fields = fields_of(stored(encoding, logits))
    assert kept_by(fields, 9).sum(1).tolist() == [1, 9, 5]
    target = encoding.decode(fields, num_classes=9, temperature=1.0)
    assert target.log_tail_N[1] == -math.inf
    assert target.dense(9)[0].argmax() == 4
    assert (target.dense(9).exp().sum(1) - 1).abs().max() < 1e-6


# --- temperatures --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.999, 0.0, -1.0, 4.001, math.inf, math.nan])
@pytest.mark.parametrize("text", ["packed:3", "adaptive:0.1"])
def test_temperatures_beyond_the_stored_are_refused(text: str, temperature: float) -> None:
    encoding = parse_encoding(text, 10)
    with pytest.raises(UsageError, match=rf"{text}: .* serve 1 to 4; use a dense cache"):
        encoding.check_temperature(temperature)
    with pytest.raises(UsageError, match="temperature"):
        encoding.decode(encoding.encode(torch.eye(2, 10)), num_classes=10, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.25, 1.5, 1.75, 2.5, 3.0, 3.5])
@pytest.mark.parametrize(
    ("text", "mean", "worst"),
    [("packed:10", 7e-3, 0.035), ("packed:32", 7e-3, 0.035), ("adaptive:0.0025", 7e-3, 0.035)],
)
def test_interpolated_tails_are_off_by_as_much_mass_as_was_measured(
    text: str, mean: float, worst: float, temperature: float
) -> None:
    logits = classifier_logits(400, seed=1)
    encoding = parse_encoding(text, 1000)
    fields = fields_of(stored(encoding, logits))
    target = encoding.decode(fields, num_classes=1000, temperature=temperature)
    rest = exact(logits, temperature).masked_fill(kept_by(fields, 1000), -math.inf)
    errors = (target.log_tail_N.double().exp() - rest.exp().sum(1)).abs()
    assert errors.mean() < mean
    assert errors.max() < worst


@settings(deadline=None, max_examples=60)
@given(drawn=packings(), stored_temperature=temperatures)
def test_interpolation_meets_the_stored_temperatures(
    drawn: tuple[Tensor, Packed], stored_temperature: float
) -> None:
    logits, encoding = drawn
    fields = fields_of(stored(encoding, logits))
    step = 1e-6 if stored_temperature < 4 else -1e-6
    a, b = (
        encoding.decode(fields, num_classes=logits.shape[1], temperature=t).log_tail_N
        for t in (stored_temperature, stored_temperature + step)
    )
    assert ((a == b) | ((a - b).abs() <= 1e-4 * (1 + a.abs()))).all()


# --- storage -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(2, "u2"), (65_536, "u2"), (65_537, "u4"), (70_000, "u4")]
)
@pytest.mark.parametrize("text", ["packed:2", "adaptive:0.01"])
def test_gaps_take_four_bytes_above_65536_classes(text: str, num_classes: int, dtype: str) -> None:
    encoding = parse_encoding(text, num_classes)
    gaps = encoding.specs(num_classes)[0]
    assert (gaps.name, gaps.dtype, gaps.fill) == ("gaps", dtype, 0)
    logits = torch.zeros(2, num_classes)
    logits[0, 0], logits[0, -1] = 40, 41  # the widest gap between two
    logits[1, -1] = 60  # and before the first
    arrays = stored(encoding, logits)
    target = encoding.decode(fields_of(arrays), num_classes=num_classes, temperature=1.0)
    assert target.indices_NK is not None
    assert target.indices_NK[0, :2].tolist() == [0, num_classes - 1]
    assert target.dense(num_classes).argmax(1).tolist() == [num_classes - 1] * 2
    assert encoding.in_range(arrays, num_classes)


@st.composite
def tiles(draw: st.DrawFn) -> tuple[Arrays, Packed, int]:
    """Draw the arrays of a tile: rows of no entry, of some, and full ones."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    k = draw(st.sampled_from((1, 2, 7, MAX_KEPT)))
    least = draw(st.sampled_from((None, 0.01)))
    counts = np.array(draw(st.lists(st.sampled_from((0, 1, k // 2, k)), min_size=1, max_size=9)))
    kept = np.arange(k) < counts[:, None]
    shape = kept.shape
    arrays: Arrays = {
        "gaps": np.where(kept, rng.integers(0, 2**16, shape), 0).astype(np.uint16),
        "codes": np.where(kept, rng.integers(0, NONE, shape), NONE).astype(np.uint8),
        "tails": np.where(counts[:, None] > 0, rng.integers(0, NONE, (len(kept), 3)), NONE).astype(
            np.uint8
        ),
    }
    return arrays, Packed(k, least), draw(st.integers(len(kept), 12))


@settings(deadline=None, max_examples=200)
@given(drawn=tiles())
def test_storage_gives_back_every_row(
    drawn: tuple[Arrays, Packed, int],
) -> None:
    rows, encoding, num_rows = drawn
    specs = encoding.specs(1000)
    kept = to_stored(rows, specs, num_rows=num_rows)
    assert kept.keys() == {spec.name for spec in specs}
    found = from_stored(kept, specs, num_rows=len(rows["codes"]))
    assert found.keys() == rows.keys()
    for name, array in rows.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    # What stands beyond the last row is a row that cannot be used.
    whole = from_stored(kept, specs, num_rows=num_rows)
    expected = [bool((row != NONE).any()) for row in rows["tails"]]
    padding = [False] * (num_rows - len(expected))
    assert encoding.usable(whole).tolist() == expected + padding


@settings(deadline=None, max_examples=100)
@given(drawn=tiles())
def test_a_ragged_tile_holds_its_entries_one_after_the_other(
    drawn: tuple[Arrays, Packed, int],
) -> None:
    rows, encoding, num_rows = drawn
    specs = Packed(encoding.k, 0.01).specs(1000)
    kept = to_stored(rows, specs, num_rows=num_rows)
    present = rows["codes"] != NONE
    total = int(present.sum())
    assert kept["counts"][: len(present), 0].tolist() == present.sum(1).tolist()
    assert not kept["counts"][len(present) :].any()
    assert kept["codes"].shape == (num_rows * encoding.k,)
    assert kept["codes"][:total].tolist() == rows["codes"][present].tolist()
    assert (kept["codes"][total:] == NONE).all()
    assert not kept["gaps"][total:].any()


@pytest.mark.parametrize("text", ["packed:3", "packed:10", "adaptive:0.05"])
@given(bad=st.sets(st.integers(0, 5)))
@settings(deadline=None, max_examples=20)
def test_rows_of_fill_values_are_recognised_and_the_others_unchanged(
    text: str, bad: set[int]
) -> None:
    encoding = parse_encoding(text, 10)
    specs = encoding.specs(10)
    rows = to_arrays(encoding.encode(3 * torch.eye(6, 10)), specs)
    for spec in specs:
        if spec.name in rows:
            rows[spec.name][sorted(bad)] = np.array(spec.fill).astype(spec.dtype)
    found = from_stored(to_stored(rows, specs, num_rows=6), specs, num_rows=6)
    for name, array in rows.items():
        np.testing.assert_array_equal(found[name], array)
    assert encoding.usable(found).tolist() == [row not in bad for row in range(6)]
    assert encoding.in_range(found, 10)


def test_a_gap_beyond_the_last_class_is_out_of_range() -> None:
    codes = np.array([[0, 9, NONE], [4, 0, 7], [NONE] * 3], np.uint8)

    def in_range(*gaps: list[int]) -> bool:
        arrays = {"gaps": np.array([*gaps, [0, 0, 0]], np.uint16), "codes": codes}
        arrays["tails"] = np.array([[0] * 3, [0] * 3, [NONE] * 3], np.uint8)
        return Packed(3).in_range(arrays, 10)

    assert in_range([0, 8, 0], [0, 0, 7])  # classes 0, 9 and 0, 1, 9
    assert not in_range([0, 9, 0], [0, 0, 7])
    assert not in_range([0, 8, 0], [3, 3, 2])
    assert not in_range([0xFFFF, 0xFFFF, 0], [0, 0, 7])


@pytest.mark.parametrize("codes", [[NONE] * 3, [4, 9, 7], [0, 0, 9]])
def test_a_row_without_one_largest_class_is_out_of_range(codes: list[int]) -> None:
    arrays: Arrays = {
        "gaps": np.zeros((1, 3), np.uint16),
        "codes": np.array([codes], np.uint8),
        "tails": np.zeros((1, 3), np.uint8),
    }
    assert not Packed(3).in_range(arrays, 10)


@pytest.mark.parametrize(("gap", "inside"), [(1, True), (2, False)])
def test_an_entry_behind_an_absent_one_is_in_range_if_its_decoded_class_is(
    gap: int, inside: bool
) -> None:
    """Nothing writes such rows; what is absent counts as a class all the same."""
    arrays: Arrays = {
        "gaps": np.array([[6, 0, gap]], np.uint16),
        "codes": np.array([[0, NONE, 9]], np.uint8),
        "tails": np.zeros((1, 3), np.uint8),
    }
    target = Packed(3).decode(fields_of(arrays), num_classes=10, temperature=1.0)
    assert target.indices_NK is not None
    assert bool(target.indices_NK[0, 2] < 10) is inside
    assert Packed(3).in_range(arrays, 10) is inside


def test_the_golden_bytes_never_change() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.25, -30.0], [3.0, 0.0, -1.0, -8.0, -2.0]])
    found = {}
    for text in ("packed:2", "adaptive:0.15"):
        encoding = parse_encoding(text, 5)
        specs = encoding.specs(5)
        arrays = to_stored(to_arrays(encoding.encode(logits), specs), specs, num_rows=3)
        found[text] = {name: array.tolist() for name, array in arrays.items()}
    assert found == {
        "packed:2": {
            "gaps": [[0, 1], [0, 0], [0, 0]],
            "codes": [[0, 44], [0, 67], [255, 255]],
            "tails": [[146, 153, 157], [130, 146, 154], [255, 255, 255]],
        },
        "adaptive:0.15": {
            "gaps": [0, 1, 0, 0, 0] + [0] * 10,
            "codes": [0, 44, 49, 0, 67] + [255] * 10,
            "tails": [[133, 143, 147], [130, 146, 154], [255, 255, 255]],
            "counts": [[3], [2], [0]],
        },
    }


def test_the_stored_arrays_are_those_of_the_format() -> None:
    def layout(text: str) -> list[tuple[object, ...]]:
        return [
            (s.name, s.dtype, s.width, s.fill, s.compression, s.layout)
            for s in parse_encoding(text, 1000).specs(1000)
        ]

    assert layout("packed:32") == [
        ("gaps", "u2", 32, 0, "zstd-shuffle-1mib", "rows"),
        ("codes", "u1", 32, 255, "lz4-bitshuffle", "rows"),
        ("tails", "u1", 3, 255, "lz4-bitshuffle", "rows"),
    ]
    assert layout("adaptive:0.01") == [
        ("gaps", "u2", 128, 0, "zstd-shuffle-1mib", "ragged"),
        ("codes", "u1", 128, 255, "lz4-bitshuffle", "ragged"),
        ("tails", "u1", 3, 255, "lz4-bitshuffle", "rows"),
        ("counts", "u1", 1, 0, "zstd", "counts"),
    ]


# --- extremes ------------------------------------------------------------------------------

EXTREMES = {
    "1e4 apart": torch.tensor([[0.0, -1e4, 1e4, 5.0], [1e4, 1e4, -1e4, -1e4]]),
    "all equal": torch.full((2, 4), -7.0),
    "float16": torch.tensor([[65504.0, -65504.0, 0.0, 1.0], [6e-8, 0, 0, 0]]).half(),
    "bfloat16": torch.tensor([[1e30, -1e30, 0.0, 1.0], [3.0, 2.0, -1e6, -1e6]]).bfloat16(),
    "two classes": torch.tensor([[0.0, 1e4], [3.0, 3.0], [-1e4, 1e4]]),
    "one class": torch.tensor([[5.0], [-1e4]]),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("text", ["packed:1", "packed:2", "packed:4", "adaptive:1", "adaptive:0.1"])
def test_extreme_logits_give_no_nan_and_rows_that_add_up_to_one(name: str, text: str) -> None:
    logits = EXTREMES[name]
    num_classes = logits.shape[1]
    if text.startswith("packed"):
        text = f"packed:{min(int(text[7:]), num_classes)}"
    encoding = parse_encoding(text, num_classes)
    arrays = stored(encoding, logits)
    assert encoding.usable(arrays).all()
    fields = fields_of(arrays)
    for temperature in (1.0, 1.0001, 1.5, 2.0, 3.0, 3.9999, 4.0):
        target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
        spread = target.dense(num_classes)
        assert not spread.isnan().any()
        assert not target.log_tail_N.isnan().any()
        assert (spread.exp().sum(1) - 1).abs().max() < 1e-5
        best = logits == logits.amax(1, keepdim=True)
        # Where all are nearly equal, a tail's rounded mass may lift its classes a little above.
        assert (spread.where(best, -math.inf).amax(1) > spread.amax(1) - 1 / 16 - 0.011).all()


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "k", "least"),
    [
        ("packed:1", 1, None),
        ("packed:1000", 1000, None),
        ("adaptive:0.0025", 128, 0.0025),
        ("adaptive:1e-05", 128, 1e-05),
        ("adaptive:1.0", 128, 1.0),
    ],
)
def test_a_name_gives_the_encoding_that_bears_it(text: str, k: int, least: float | None) -> None:
    encoding = parse_encoding(text, 1000)
    assert encoding == Packed(k, least)
    assert str(encoding) == text


@given(least=st.floats(0, 1, exclude_min=True))
def test_every_threshold_is_read_as_it_is_written(least: float) -> None:
    encoding = parse_encoding(f"adaptive:{least!r}", 10)
    assert encoding == Packed(10, least)
    assert parse_encoding(str(encoding), 10) == encoding


@pytest.mark.parametrize("text", ["adaptive:1e-3", "adaptive:.001", "adaptive:0.0010"])
def test_spellings_of_one_threshold_are_one_encoding(text: str) -> None:
    assert str(parse_encoding(text, 1000)) == "adaptive:0.001"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("packed:0", "K must be 1 to 1000"),
        ("packed:1001", "K must be 1 to 1000"),
        ("adaptive:0", "E, the least probability kept, must be above 0, to 1"),
        ("adaptive:1.01", "must be above 0, to 1"),
        ("adaptive:-0.1", "must be above 0, to 1"),
        ("adaptive:nan", "must be above 0, to 1"),
        ("adaptive:inf", "must be above 0, to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"encoding {text}: .*{words}"):
        parse_encoding(text, 1000)


# --- what a view costs ---------------------------------------------------------------------


def cost(logits_NC: Tensor, text: str) -> tuple[float, dict[str, float]]:
    """Return bytes a view in tiles of 1,024 rows, and gradient errors in percent by T."""
    encoding = parse_encoding(text, logits_NC.shape[1])
    specs = encoding.specs(logits_NC.shape[1])
    size_bytes, fidelity = 0, NO_ROWS
    for rows_NC in logits_NC.split(1024):
        fields = encoding.encode(rows_NC)
        fidelity += measure(rows_NC, fields, encoding)
        chunks = encode_tile(to_arrays(fields, specs), specs, num_rows=1024)
        size_bytes += sum(map(len, chunks.values()))
    errors = fidelity.summary()["gradient_error"]
    return size_bytes / len(logits_NC), {t: 100 * error for t, error in errors.items()}


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """4,096 rows of the reference distribution, as an ImageNet classifier's."""
    return torch.from_numpy(simulate_logits("ce", num_rows=4096))


def test_the_k_largest_cost_what_was_measured(reference: Tensor) -> None:
    """Measured: 57.4 bytes, .83 and 2.72%; 20.1 bytes, 2.20%."""
    size, errors = cost(reference, "packed:32")
    assert size <= 58
    assert round(errors["1"], 1) <= 0.8
    assert round(errors["2"], 1) <= 2.7
    size, errors = cost(reference, "packed:10")
    assert size <= 24
    assert errors["1"] <= 2.3


@pytest.mark.parametrize("k", [10, 32])
def test_packed_says_what_topk_says_in_fewer_bytes(reference: Tensor, k: int) -> None:
    packed, packed_errors = cost(reference, f"packed:{k}")
    topk, topk_errors = cost(reference, f"topk:{k}")
    assert packed < 0.87 * topk
    assert all(packed_errors[t] < 1.035 * topk_errors[t] for t in ("1", "2", "4"))


@pytest.mark.parametrize(("least", "k"), [(0.0022, 32), (0.01, 10)])
def test_adaptive_loses_less_than_packed_in_fewer_bytes(
    reference: Tensor, least: float, k: int
) -> None:
    """Measured: 49.3 bytes, .65 and 2.58%; 19.3 bytes, 2.19 and 4.5%."""
    adaptive, errors = cost(reference, f"adaptive:{least}")
    packed, packed_errors = cost(reference, f"packed:{k}")
    assert adaptive < packed
    assert all(errors[t] <= packed_errors[t] for t in ("1", "2"))


def test_higher_thresholds_trade_one_temperature_for_the_other(reference: Tensor) -> None:
    """Measured: 42.8 bytes, .74 and 2.75%; 18.7 bytes, 2.52 and 4.8%."""
    size, errors = cost(reference, "adaptive:0.0025")
    packed, packed_errors = cost(reference, "packed:32")
    assert size < 0.8 * packed
    assert errors["1"] < packed_errors["1"]
    assert errors["2"] < 1.02 * packed_errors["2"]
    size, errors = cost(reference, "adaptive:0.012")
    packed, packed_errors = cost(reference, "packed:10")
    assert size < 0.95 * packed
    assert errors["1"] < 1.16 * packed_errors["1"]
    assert errors["2"] < 0.6 * packed_errors["2"]
