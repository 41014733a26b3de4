"""Numbers of the study in words; pure."""

from collections.abc import Callable, Collection, Sequence
from math import isnan

from pipelines.study.summary import Estimate

MINUS, TO = "−", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
DIVERGED = "diverged"  # in the place of a KL: a seed of its mean has none


def nats(value: float) -> str:
    """Return a KL, without its unit."""
    return _shown(value, "z.3f")


def signed_nats(value: float) -> str:
    """Return a difference of KLs with its sign, without its unit."""
    return _shown(value, "+z.3f")


def percent(value: float) -> str:
    """Return a share of one in per cent, without the sign of per cent."""
    return _shown(100 * value, "z.1f")


def share(value: float) -> str:
    """Return a share of one as whole per cent, with their sign."""
    return f"{value:.0%}"


def points(value: float) -> str:
    """Return a difference of shares with its sign, in points of a hundred."""
    return _shown(100 * value, "+z.1f")


def _shown(value: float, form: str) -> str:
    return DIVERGED if isnan(value) else format(value, form).replace("-", MINUS)


def with_interval(estimate: Estimate, show: Callable[[float], str] = nats) -> str:
    """Return a mean and its interval, which no line divides; of one seed, the mean."""
    mean, low, high = map(show, estimate)
    return mean if isnan(estimate.low) else f"{mean} ({low}{TO}{high})"


def p_value(value: float | None) -> str:
    """Return a probability to three decimals; nothing where there is none."""
    if value is None or isnan(value):
        return ""
    return "<\N{NO-BREAK SPACE}0.001" if value < 0.001 else f"{value:.3f}"


def listed(names: Sequence[str]) -> str:
    """Return names joined by commas, the last by `and`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def arms_named(names: Collection[str], *, of: int) -> str:
    """Return arms, whose names may hold commas, in quotes. of: how many there are."""
    if len(names) == of > 1:
        return f"all {of} arms"
    return listed([f"“{name}”" for name in names])


def number(value: float | None) -> str:
    """Return a setting; a dash where there is none."""
    return "–" if value is None else f"{value:,.6g}"


def plural(count: int, name: str) -> str:
    """Return how many there are of what a name, of one, says."""
    return f"{number(count)} {name}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """Return a sentence with its first letter large."""
    return text[:1].upper() + text[1:]
