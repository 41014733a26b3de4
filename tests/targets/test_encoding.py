"""Claims about encodings: what is lost is bounded, and nothing turns into NaN."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.targets.encoding import RANGE_NATS, Dense, Encoding, TopK, parse_encoding, to_arrays
from kdcache.targets.target import TAIL_TEMPERATURES, Fields, SparseTarget
from tests.targets.logits import classifier_logits, logits_and_k, some_logits

temperatures = st.sampled_from(TAIL_TEMPERATURES)
dense = st.sampled_from((Dense("f2"), Dense("u1")))


def exact(logits_NC: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits_NC.double() / temperature).log_softmax(1)


def exact_tail(logits_NC: Tensor, indices_NK: Tensor, temperature: float) -> Tensor:
    """Return the log mass outside the indices, summed in float64 from whichever side is small."""
    log_probs = exact(logits_NC, temperature)
    rest = log_probs.scatter(1, indices_NK, -math.inf).logsumexp(1)
    kept = log_probs.gather(1, indices_NK).logsumexp(1)
    return torch.where(rest < -0.5, rest, torch.log1p(-kept.exp()))


def distance_bound(below: Tensor) -> Tensor:
    """Return the bound that kdcache.targets.encoding states for distances up to 32 nats."""
    return (below / RANGE_NATS).sqrt() / 7.96 + 1.3e-4


def stored(encoding: Encoding, logits_NC: Tensor) -> Fields:
    """Return the encoded fields after a trip through the stored dtypes."""
    specs = encoding.specs(logits_NC.shape[1])
    arrays = to_arrays(encoding.encode(logits_NC), specs)
    assert {spec.name: (spec.dtype, spec.width) for spec in specs} == {
        name: (array.dtype.str[1:], array.shape[1]) for name, array in arrays.items()
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# --- top-k: the stated bounds --------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(drawn=logits_and_k())
def test_distances_and_tails_are_stored_within_the_stated_bounds(drawn: tuple[Tensor, int]) -> None:
    logits, k = drawn
    fields = stored(TopK(k), logits)
    indices = fields["indices"].long()
    kept = logits.double().gather(1, indices)
    below = kept.amax(1, keepdim=True) - kept
    found = RANGE_NATS * (fields["values"].double() / 255) ** 2
    error = (found - below).abs()
    near = below <= RANGE_NATS
    assert (error[near] <= distance_bound(below)[near]).all()
    assert (found[~near] == RANGE_NATS).all()
    for column, temperature in enumerate(TAIL_TEMPERATURES):
        tails = fields["tails"][:, column].double()
        expected = exact_tail(logits, indices, temperature)
        if k == logits.shape[1]:
            assert (tails == -65504).all()
        else:
            assert ((tails - expected).abs() <= 5e-4 * expected.abs() + 3e-8).all()


@pytest.mark.parametrize("num_classes", [21_841, 70_000])
@pytest.mark.parametrize("k", [1, 8])
def test_the_tail_of_flat_logits_is_exact_to_its_stored_precision(num_classes: int, k: int) -> None:
    """Summed in float32 over all classes, its logarithm was off by up to 8%."""
    logits = 0.1 * torch.randn(8, num_classes, generator=torch.Generator().manual_seed(0))
    fields = TopK(k).encode(logits)
    for column, temperature in enumerate(TAIL_TEMPERATURES):
        expected = exact_tail(logits, fields["indices"], temperature)
        error = (fields["tails"][:, column].double() - expected).abs()
        assert (error <= 5e-4 * expected.abs() + 3e-8).all()
        target = TopK(k).decode(fields, num_classes=num_classes, temperature=temperature)
        kept = exact(logits, temperature).gather(1, fields["indices"])
        assert (target.log_probs_NK - kept).abs().max() < 0.01


@settings(deadline=None, max_examples=100)
@given(drawn=logits_and_k())
def test_the_k_largest_are_kept_in_falling_order(drawn: tuple[Tensor, int]) -> None:
    logits, k = drawn
    fields = TopK(k).encode(logits)
    kept = logits.gather(1, fields["indices"])
    # Classes closer than float32 tells apart after log_softmax may stand in for each other.
    resolution = 1e-6 * (16 + logits.amax(1, keepdim=True) - kept)
    assert ((kept - logits.topk(k).values).abs() <= resolution).all()
    assert (fields["values"].int().diff(dim=1) >= 0).all()
    assert (fields["values"][:, 0] == 0).all()
    assert all(len(set(row)) == k for row in fields["indices"].tolist())


@settings(deadline=None, max_examples=80)
@given(drawn=logits_and_k(), temperature=st.floats(1, 4))
@example(drawn=(torch.zeros(1, 2), 1), temperature=3.0)
def test_a_decoded_target_is_a_distribution(drawn: tuple[Tensor, int], temperature: float) -> None:
    logits, k = drawn
    num_classes = logits.shape[1]
    fields = stored(TopK(k), logits)
    target = TopK(k).decode(fields, num_classes=num_classes, temperature=temperature)
    assert target.log_probs_NK.dtype == target.log_tail_N.dtype == torch.float32
    mass = target.log_probs_NK.double().exp().sum(1) + target.log_tail_N.double().exp()
    assert (mass - 1).abs().max() < 1e-5
    spread = target.dense(num_classes).double()
    assert not spread.isnan().any()
    assert (spread.exp().sum(1) - 1).abs().max() < 1e-4
    assert spread.gather(1, fields["indices"].long()).equal(target.log_probs_NK.double())


@settings(deadline=None, max_examples=80)
@given(drawn=logits_and_k(), temperature=temperatures)
def test_kept_log_probabilities_are_off_by_what_distances_and_tail_allow(
    drawn: tuple[Tensor, int], temperature: float
) -> None:
    """With k = C this is the bound of the whole log-softmax."""
    logits, k = drawn
    logits = logits.clamp(min=logits.amax(1, keepdim=True) - 31.9)
    num_classes = logits.shape[1]
    fields = stored(TopK(k), logits)
    indices = fields["indices"].long()
    log_probs = exact(logits, temperature).gather(1, indices)
    below = logits.double().amax(1, keepdim=True) - logits.double().gather(1, indices)
    entry = distance_bound(below) / temperature
    # The normaliser of the kept entries moves by their errors, at most, and their mass by tail's.
    shares = (log_probs - log_probs.logsumexp(1, keepdim=True)).exp()
    normaliser = (shares * entry.exp()).sum(1, keepdim=True).log()
    bound = entry + normaliser + 2e-5
    if k < num_classes:
        tail = exact_tail(logits, indices, temperature)
        off = 5e-4 * tail.abs() + 3e-8
        kept_mass = -torch.expm1(tail)
        bound += (off * tail.exp() * off.exp() / kept_mass)[:, None] * 1.01
    target = TopK(k).decode(fields, num_classes=num_classes, temperature=temperature)
    assert ((target.log_probs_NK.double() - log_probs).abs() <= bound).all()
    if k == num_classes:
        assert (target.log_tail_N == -math.inf).all()
        whole = target.dense(num_classes).double()
        error = (whole - exact(logits, temperature)).abs()
        assert (error.gather(1, indices) <= bound).all()


def test_a_kept_entry_far_below_the_largest_counts_as_32_nats() -> None:
    logits = torch.tensor([[0.0, -100.0, -1e6]])
    target = TopK(3).decode(stored(TopK(3), logits), num_classes=3, temperature=1.0)
    assert target.log_probs_NK[0].tolist() == pytest.approx([0, -32, -32], abs=1e-5)


def test_the_tail_is_spread_evenly_over_the_classes_that_were_not_kept() -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0, 0.0, 0.0]])
    target = TopK(2).decode(stored(TopK(2), logits), num_classes=5, temperature=1.0)
    assert target.indices_NK is not None
    assert target.indices_NK.tolist() == [[0, 2]]
    spread = target.dense(5)[0]
    expected = exact(logits)[0]
    assert (spread - expected).abs().max() < 0.025  # one nat is stored as 1.0067
    assert spread[1] == spread[3] == spread[4]


# --- top-k: temperatures -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.999, 0.0, -1.0, 4.001, 100.0, math.inf, math.nan])
def test_topk_refuses_temperatures_that_dense_serves(temperature: float) -> None:
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    fields = TopK(3).encode(logits)
    with pytest.raises(UsageError, match="topk:3: top-k caches serve 1 to 4; use a dense cache"):
        TopK(3).decode(fields, num_classes=10, temperature=temperature)
    if 0 < temperature < math.inf:
        for encoding in (Dense("f2"), Dense("u1")):
            target = encoding.decode(
                encoding.encode(logits), num_classes=10, temperature=temperature
            )
            assert (target.log_probs_NK - exact(logits, temperature)).abs().max() < (
                0.03 / min(temperature, 1)
            )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("encoding", [Dense("f2"), Dense("u1"), TopK(3)], ids=str)
def test_a_temperature_that_is_not_positive_is_refused(
    encoding: Encoding, temperature: float
) -> None:
    fields = encoding.encode(torch.eye(2, 10))
    with pytest.raises(UsageError, match="temperature"):
        encoding.check_temperature(temperature)
    with pytest.raises(UsageError, match="temperature"):
        encoding.decode(fields, num_classes=10, temperature=temperature)


def tail_errors(k: int, temperature: float) -> Tensor:
    logits = classifier_logits(400, seed=1)
    fields = stored(TopK(k), logits)
    target = TopK(k).decode(fields, num_classes=1000, temperature=temperature)
    expected = exact_tail(logits, fields["indices"].long(), temperature)
    return (target.log_tail_N.double().exp() - expected.exp()).abs()


@pytest.mark.parametrize("temperature", [1.25, 1.5, 1.75, 2.5, 3.0, 3.5])
@pytest.mark.parametrize(
    ("k", "mean", "worst"), [(10, 3e-4, 4e-3), (32, 1e-4, 5e-4), (100, 1e-4, 4e-4)]
)
def test_interpolated_tails_are_off_by_as_much_mass_as_was_measured(
    k: int, mean: float, worst: float, temperature: float
) -> None:
    errors = tail_errors(k, temperature)
    assert errors.mean() < mean
    assert errors.max() < worst


@settings(deadline=None, max_examples=50)
@given(drawn=logits_and_k(), stored_temperature=temperatures)
def test_interpolation_meets_the_stored_temperatures(
    drawn: tuple[Tensor, int], stored_temperature: float
) -> None:
    logits, k = drawn
    fields = stored(TopK(k), logits)
    at = TopK(k).decode(fields, num_classes=logits.shape[1], temperature=stored_temperature)
    step = 1e-6 if stored_temperature < 4 else -1e-6
    close = TopK(k).decode(
        fields, num_classes=logits.shape[1], temperature=stored_temperature + step
    )
    a, b = at.log_tail_N, close.log_tail_N
    assert ((a == b) | ((a - b).abs() <= 1e-4 * (1 + a.abs()))).all()


def test_two_classes_interpolate_without_loss() -> None:
    """One class is the whole tail, whose logarithm is linear in 1 / T."""
    logits = torch.linspace(0, 30, 100)[:, None] * torch.tensor([[1.0, 0.0]])
    fields = stored(TopK(1), logits)
    for temperature in (1.3, 1.7, 2.5, 3.3):
        target = TopK(1).decode(fields, num_classes=2, temperature=temperature)
        expected = exact_tail(logits, fields["indices"].long(), temperature)
        assert ((target.log_tail_N - expected).abs() <= 3e-3 * expected.abs()).all()


# --- dense ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(logits=some_logits(), encoding=dense)
def test_dense_distances_are_stored_within_the_stated_bounds(
    logits: Tensor, encoding: Dense
) -> None:
    fields = stored(encoding, logits)
    below = logits.double().amax(1, keepdim=True) - logits.double()
    if encoding.dtype == "f2":
        assert ((-fields["logits"].double() - below).abs() <= 5e-4 * below + 3e-8).all()
    else:
        ranges = below.amax(1, keepdim=True)
        found = fields["codes"].double() * fields["ranges"].double() / 255
        assert ((found - below).abs() <= ranges / 509).all()


@settings(deadline=None, max_examples=100)
@given(logits=some_logits(), encoding=dense, temperature=st.floats(0.25, 50))
def test_dense_targets_are_the_log_softmax_within_the_bounds_of_distances(
    logits: Tensor, encoding: Dense, temperature: float
) -> None:
    num_classes = logits.shape[1]
    target = encoding.decode(
        stored(encoding, logits), num_classes=num_classes, temperature=temperature
    )
    assert target.indices_NK is None
    assert (target.log_tail_N == -math.inf).all()
    assert target.dense(num_classes) is target.log_probs_NK
    below = logits.double().amax(1, keepdim=True) - logits.double()
    off = 5e-4 * below + 3e-8
    if encoding.dtype == "u1":
        off = below.amax(1, keepdim=True) / 509 * torch.ones_like(below)
    expected = exact(logits, temperature)
    normaliser = (expected.exp() * (off / temperature).exp()).sum(1, keepdim=True).log()
    # float32: rounding of the values, and of their sum over many classes.
    slack = 1e-6 * (10 + below / temperature) + 1e-9 * num_classes
    assert (
        (target.log_probs_NK.double() - expected).abs() <= off / temperature + normaliser + slack
    ).all()


# --- extremes ------------------------------------------------------------------------------

EXTREMES = {
    "1e4 apart": torch.tensor([[0.0, -1e4, 1e4, 5.0], [1e4, 1e4, -1e4, -1e4]]),
    "all equal": torch.full((2, 4), -7.0),
    "float16": torch.tensor([[65504.0, -65504.0, 0.0, 1.0], [6e-8, 0, 0, 0]]).half(),
    "bfloat16": torch.tensor([[1e30, -1e30, 0.0, 1.0], [3.0, 2.0, -1e6, -1e6]]).bfloat16(),
    "two classes": torch.tensor([[0.0, 1e4], [3.0, 3.0], [-1e4, 1e4]]),
    "one class": torch.tensor([[5.0], [-1e4]]),
    "one hot": torch.eye(4) * 1e4,
}
ENCODINGS = ("topk:1", "topk:2", "topk:4", "dense:f2", "dense:u1")


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("text", ENCODINGS)
def test_extreme_logits_give_no_nan_and_rows_that_add_up_to_one(name: str, text: str) -> None:
    logits = EXTREMES[name]
    num_classes = logits.shape[1]
    if text.startswith("topk") and int(text[5:]) > num_classes:
        text = f"topk:{num_classes}"
    encoding = parse_encoding(text, num_classes)
    fields = stored(encoding, logits)
    assert encoding.usable({name: field.numpy() for name, field in fields.items()}).all()
    for temperature in (1.0, 1.0001, 1.5, 2.0, 3.0, 3.9999, 4.0):
        target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
        spread = target.dense(num_classes)
        assert not spread.isnan().any()
        assert not target.log_tail_N.isnan().any()
        assert (spread.exp().sum(1) - 1).abs().max() < 1e-5
        best = logits == logits.amax(1, keepdim=True)  # of equal classes, any may be kept
        assert (spread.where(best, -math.inf).amax(1) > spread.amax(1) - 2e-3).all()


# --- storage -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "dtype", "fill"),
    [
        (2, "u2", 0xFFFF),
        (65_535, "u2", 0xFFFF),
        (65_536, "u4", 0xFFFFFFFF),
        (70_000, "u4", 0xFFFFFFFF),
    ],
)
def test_indices_take_four_bytes_above_65535_classes(
    num_classes: int, dtype: str, fill: int
) -> None:
    spec = TopK(2).specs(num_classes)[0]
    assert (spec.name, spec.dtype, spec.fill) == ("indices", dtype, fill)
    logits = torch.zeros(1, num_classes)
    logits[0, -1], logits[0, 0] = 2, 1
    fields = stored(TopK(2), logits)
    assert fields["indices"].tolist() == [[num_classes - 1, 0]]
    assert num_classes - 1 < fill  # the last class is not the fill value
    target = TopK(2).decode(fields, num_classes=num_classes, temperature=1.0)
    assert target.indices_NK is not None
    assert target.indices_NK.dtype == torch.int64
    assert target.dense(num_classes).argmax(1).tolist() == [num_classes - 1]


def test_the_stored_arrays_are_those_of_format_version_1() -> None:
    def layout(encoding: Encoding) -> list[tuple[object, ...]]:
        return [
            (spec.name, spec.dtype, spec.width, str(spec.fill), spec.compression)
            for spec in encoding.specs(1000)
        ]

    assert layout(TopK(32)) == [
        ("indices", "u2", 32, "65535", "lz4-bitshuffle"),
        ("values", "u1", 32, "255", "zstd-bitshuffle"),
        ("tails", "f2", 3, "nan", "zstd-shuffle"),
    ]
    assert layout(Dense("f2")) == [("logits", "f2", 1000, "nan", "zstd-shuffle")]
    assert layout(Dense("u1")) == [
        ("codes", "u1", 1000, "255", "zstd-bitshuffle"),
        ("ranges", "f4", 1, "nan", "zstd-shuffle"),
    ]


@pytest.mark.parametrize("text", ["topk:3", "topk:10", "dense:f2", "dense:u1"])
@given(bad=st.sets(st.integers(0, 5)))
@settings(deadline=None, max_examples=20)
def test_rows_of_fill_values_are_recognised(text: str, bad: set[int]) -> None:
    encoding = parse_encoding(text, 10)
    specs = encoding.specs(10)
    arrays = to_arrays(encoding.encode(torch.eye(6, 10)), specs)
    for spec in specs:
        arrays[spec.name][sorted(bad)] = np.array(spec.fill).astype(spec.dtype)
    assert encoding.usable(arrays).tolist() == [row not in bad for row in range(6)]


def test_the_golden_bytes_of_every_encoding_never_change() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.25, -30.0], [3.0, 0.0, -1.0, -8.0, -2.0]])
    found = {
        text: {
            spec.name: to_arrays(parse_encoding(text, 5).encode(logits), (spec,))[
                spec.name
            ].tolist()
            for spec in parse_encoding(text, 5).specs(5)
        }
        for text in ("topk:2", "dense:f2", "dense:u1")
    }
    assert found == {
        "topk:2": {
            "indices": [[0, 2], [0, 1]],
            "values": [[0, 55], [0, 78]],
            "tails": [
                [-1.8671875, -1.1943359375, -0.919921875],
                [-3.7578125, -1.875, -1.115234375],
            ],
        },
        "dense:f2": {"logits": [[-0.0, -3.0, -1.5, -1.75, -32.0], [-0.0, -3.0, -4.0, -11.0, -5.0]]},
        "dense:u1": {
            "codes": [[0, 24, 12, 14, 255], [0, 70, 93, 255, 116]],
            "ranges": [[32.0], [11.0]],
        },
    }


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["topk:1", "topk:32", "topk:1000", "dense:f2", "dense:u1"])
def test_a_name_gives_the_encoding_that_bears_it(text: str) -> None:
    encoding = parse_encoding(text, 1000)
    assert str(encoding) == text
    assert isinstance(encoding, TopK if text.startswith("topk") else Dense)


@pytest.mark.parametrize("text", ["topk:0", "topk:1001", "topk:99999999999999999999"])
def test_k_is_from_one_to_the_number_of_classes(text: str) -> None:
    with pytest.raises(UsageError, match=f"encoding {text}: K must be 1 to 1000"):
        parse_encoding(text, 1000)


@pytest.mark.parametrize(
    "text",
    ["", "topk", "topk:", "topk:-1", "topk:x", "topk:1.5", "topk: 3", "topk:3:4", "topk:٣",
     "topk:²", "Topk:3", "dense", "dense:", "dense:f4", "dense:u1:2", "full", "packed", "packed:",
     "packed:1.5", "packed:-1", "adaptive", "adaptive:", "adaptive:x", "adaptive:0.1:2"],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_those_allowed(text: str) -> None:
    names = "expected topk:K, packed:K, adaptive:E, dense:f2 or dense:u1"
    with pytest.raises(UsageError, match=names):
        parse_encoding(text, 1000)


def test_a_dense_target_needs_no_indices() -> None:
    log_probs = torch.tensor([[0.0, -math.inf]])
    assert SparseTarget(None, log_probs, torch.tensor([-math.inf])).dense(2) is log_probs
