"""What labels mean: a label is a number, and two numbers are one class where their names agree.

What may be compared with what:

- labels with the classes of whom they measure or teach: name by name (check_labels). Both are names
  of folders, so that any difference is another class; where no name is the same, they are of
  different vocabularies, and nothing is said.
- a dataset with what a teacher's source says: only by order (check_order). The same class is
  "n01440764" in one place and "tench" in another, but one name at two numbers is a contradiction.
- a dataset with its cache: not as such. Both hold the same images, so that other names in the cache
  are those from before the dataset was relabelled, which changes no target. Where labels are
  learned beside targets, both must mean the same, and the order counts, as of a teacher.

Where either side has no names, or another number of them, nothing is compared.
"""

from collections.abc import Sequence

from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError

_SHOWN = 3


def check_labels(
    dataset: Dataset,
    classes: Sequence[str] | None,
    *,
    whose: str = "the student",
    like: str | None = "TRAINING_DATA",
) -> None:
    """Check that a dataset's labels, if it has any, are of the classes that these names name.

    classes: of a student, in order, or of the data that it learned from; None if unknown.
    whose: theirs, in the message. like: where the data with these names lie; None if nowhere.

    Raises:
        MismatchError: a class has another name.
    """
    if dataset.classes is None or classes is None or not bool((dataset.labels >= 0).any()):
        return
    if len(dataset.classes) == len(classes) and set(dataset.classes) & set(classes):
        numbers = [n for n, name in enumerate(dataset.classes) if name != classes[n]]
        advice = f"pack the validation images with kdcache pack … --classes-of {like}"
        if like is None:
            advice = "map the classes of the targets to those of the images with --labels"
        _check(dataset, dataset.classes, classes, numbers=numbers, whose=whose, advice=advice)


def check_order(
    dataset: Dataset, classes: Sequence[str] | None, *, whose: str, advice: str
) -> None:
    """Check that no class of a dataset has another number here, where it may be spelt otherwise.

    whose, advice: of the message.

    Raises:
        MismatchError: a name stands at another number.
    """
    if dataset.classes is None or classes is None or len(dataset.classes) != len(classes):
        return
    numbers = misplaced(dataset.classes, classes)
    _check(dataset, dataset.classes, classes, numbers=numbers, whose=whose, advice=advice)


def misplaced(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Return the numbers of the classes that have another number among as many other names."""
    known, pairs = set(theirs), zip(ours, theirs, strict=True)
    return [n for n, (one, other) in enumerate(pairs) if one != other and one in known]


def _check(
    dataset: Dataset,
    ours: Sequence[str],
    theirs: Sequence[str],
    *,
    numbers: Sequence[int],
    whose: str,
    advice: str,
) -> None:
    """Raise if there are numbers of classes that differ, with the first few of them."""
    if not numbers:
        return
    found, expected = (
        ", ".join(f"{n} is {names[n]!r:.60}" for n in numbers[:_SHOWN]) for names in (ours, theirs)
    )
    raise MismatchError(
        f"{dataset.root}: {len(numbers)} of {len(ours)} classes differ: class {found}; of {whose} "
        f"class {expected}; {advice}"
    )
