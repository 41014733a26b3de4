"""What the study compares, and how much of it: fixed before any of its results was seen.

Invariant: what is registered below is tested and reported, whatever comes out. Pilots were run on
seeds of 200 and above alone, which the study has not.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pipelines.digits import DigitNet

Arm = Literal[
    "labels",
    "labels + mixup",
    "fixed",
    "fixed, mean of crops",
    "fixed + mixup",
    "independent",
    "consistent, mild crops",
    "consistent",
    "function matching",
]

ARMS: dict[Arm, str] = {
    "labels": "sees heavy crops (35% to 100% of the area), learns the labels",
    "labels + mixup": "sees mixed heavy crops, learns the labels mixed by the same weights",
    "fixed": "sees heavy crops, learns the teacher's one prediction on the whole image",
    "fixed, mean of crops": "sees heavy crops, learns the mean of the teacher's predictions on all "
    "stored heavy crops of the image",
    "fixed + mixup": "sees mixed heavy crops, learns the predictions on the two whole images, "
    "mixed by the same weights",
    "independent": "sees heavy crops, learns the prediction on another heavy crop of the image",
    "consistent, mild crops": "sees mild crops (71% of the area), learns the prediction on that "
    "very crop",
    "consistent": "sees heavy crops, learns the prediction on that very crop",
    "function matching": "sees mixed heavy crops, learns the prediction on that very mixed image",
}

NUM_VALIDATION = 300  # of the 797 digits that neither teacher nor student sees; the rest test
NUM_TEST = 497
Part = Literal["validation", "test"]  # of the digits that students are measured on
Fault = Literal["none", "seed shifted by one", "crop moved by one pixel", "partner swapped"]
# The arm whose replay is wrong, by its recipe, and in which ways it can be.
FAULTS: dict[str, tuple[Arm, tuple[Fault, ...]]] = {
    "funmatch": (
        "function matching",
        ("none", "seed shifted by one", "crop moved by one pixel", "partner swapped"),
    ),
    "consistent": ("consistent", ("none", "seed shifted by one", "crop moved by one pixel")),
}


@dataclass(frozen=True)
class Setting:
    """What is tuned of a student. temperature: of the KL; None where labels teach."""

    learning_rate: float
    temperature: float | None
    weight_decay: float


class Comparison(NamedTuple):
    """That one arm has the lower KL after so many epochs."""

    name: str
    better: Arm
    worse: Arm
    epochs: int


@dataclass(frozen=True)
class Design:
    """How much is compared.

    budgets: epochs, short to long; a run each, since the schedule must finish. side_seeds: of
    seeds, those of the side studies: stored views at all budgets; encodings, wrong replay and the
    small teacher at the middle one. kept: classes that encodings keep; None for all.
    mild_views: stored of the mild crops, of which an image of the digits has only 36.
    """

    budgets: tuple[int, int, int]
    seeds: tuple[int, ...]
    side_seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    tuning_epochs: int
    learning_rates: tuple[float, ...]
    temperatures: tuple[float, ...]
    weight_decays: tuple[float, ...]
    view_counts: tuple[int, ...]
    kept: tuple[int | None, ...]
    mild_views: int
    teacher_epochs: int
    small_teacher_epochs: int
    batch_size: int = 50
    margin_nats: float = 0.03

    @property
    def middle(self) -> int:
        """Return the budget of the side studies, in epochs."""
        return self.budgets[1]

    @property
    def registered(self) -> list[Comparison]:
        """Return what was registered to be tested, one-sided, and corrected for together."""
        short, _, long = self.budgets
        ordered: list[tuple[Arm, Arm]] = [
            ("consistent", "fixed"),
            ("consistent", "independent"),
            ("function matching", "consistent"),
            ("function matching", "labels"),
        ]
        others = [arm for arm in ARMS if arm != "function matching"]
        worst = f"function matching worst at {short} epochs"
        return [
            *(Comparison(f"{better} < {worse}", better, worse, long) for better, worse in ordered),
            *(Comparison(worst, arm, "function matching", short) for arm in others),
        ]

    @property
    def beside(self) -> list[Comparison]:
        """Return what is reported beside: two-sided, not corrected."""
        long = self.budgets[-1]
        pairs: list[tuple[Arm, Arm]] = [
            ("fixed", "independent"),
            ("function matching", "consistent"),
            ("fixed, mean of crops", "fixed"),
            ("fixed + mixup", "fixed"),
            ("labels + mixup", "labels"),
            ("consistent", "consistent, mild crops"),
        ]
        return [Comparison(f"{a} against {b}", a, b, long) for a, b in pairs]


FULL = Design(
    budgets=(100, 600, 3000),
    seeds=tuple(range(10)),
    side_seeds=tuple(range(5)),
    tuning_seeds=(100, 101),
    tuning_epochs=600,
    learning_rates=(3e-3, 1e-2, 3e-2, 1e-1),
    temperatures=(1.0, 2.0, 4.0),
    weight_decays=(1e-4, 1e-1),
    view_counts=tuple(2**n for n in range(10)),
    kept=(1, 2, 3, 5, None),
    mild_views=600,
    teacher_epochs=60,
    small_teacher_epochs=600,
)
QUICK = Design(
    budgets=(20, 60, 300),
    seeds=(0, 1, 2),
    side_seeds=(0, 1),
    tuning_seeds=(100,),
    tuning_epochs=60,
    learning_rates=(1e-2, 3e-2),
    temperatures=(1.0, 2.0),
    weight_decays=(1e-4,),
    view_counts=(1, 4, 16, 64),
    kept=(1, 3, None),
    mild_views=60,
    teacher_epochs=30,
    small_teacher_epochs=300,
)


def student() -> "DigitNet":
    """Return the student: 14,458 parameters, as the demo's, pooled earlier for speed."""
    from pipelines.digits import DigitNet  # torch, for which a report alone need not wait

    return DigitNet((16, 32, 32), pooled=(0, 1))
