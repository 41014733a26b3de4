"""A student on other classes than its teacher's: a subset of them, or groups of them.

A file maps the student's classes to the teacher's; resolved for a teacher it is an array of
integers. The probability of a student's class is the sum of those of its teacher's classes, at
temperature 1; a temperature is applied to the sums. Mass of classes that are dropped is shared out
in proportion, as in a softmax without them.

Mapped when read, a sparse target has lost which class of the tail has what: it is as if the tail
were uniform. That is exact for uniform tails, and where each of the student's classes has one of
the teacher's, except for how much of the tail is dropped.

Letters: N rows, C teacher's classes, S student's classes, K kept entries.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, ValidationError
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.files import parse_toml, read_small
from kdcache.identity import digest
from kdcache.targets.combine import FLOOR, dense_target, first_columns, log_tail_mean, normalised
from kdcache.targets.target import SparseTarget

MAX_CLASSES = 2**20
MAX_FILE_BYTES = 1 << 25
_DROPPED = -1
_SHOWN = 5  # of many classes, how many a message names
_RUN = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})", re.ASCII)

Member = range | str


# --- the file ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelMap:
    """What a mapping file says.

    classes: the student's, in order. members: for each, runs of the teacher's numbers, and names.
    rest: the student's class that takes all classes of the teacher that are not named. drop:
    whether those are left out. file: where it stands, for messages.
    """

    classes: tuple[str, ...]
    members: tuple[tuple[Member, ...], ...]
    rest: str | None = None
    drop: bool = False
    file: str = field(default="the mapping of classes", compare=False)

    @property
    def id(self) -> str:
        """Return the digest of what is said, however runs are cut and members ordered."""
        members = [
            {
                "numbers": _joined([m for m in named if isinstance(m, range)]),
                "names": sorted({m for m in named if isinstance(m, str)}),
            }
            for named in self.members
        ]
        return digest(
            {"classes": self.classes, "members": members, "rest": self.rest, "drop": self.drop}
        )


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rest: str | None = None
    drop: bool = False
    classes: dict[str, list[StrictInt | StrictStr]]


def load_labels(path: Path) -> LabelMap:
    """Return what a mapping file says.

    Raises:
        UsageError: the file cannot be read, is too big or no TOML, or says something else.
    """
    try:
        data = read_small(path, most_bytes=MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the mapping of classes: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f'{path}: {error}; write runs as "first..last"') from None
    values = parse_toml(data, path)
    try:
        document = _Document.model_validate(values)
    except ValidationError as error:
        try:
            problem = _describe(error)
        except RecursionError:
            problem = "tables within tables"
        raise UsageError(f"{path}: {problem}") from None
    return _checked(document, str(path))


def _checked(document: _Document, source: str) -> LabelMap:
    classes, rest = tuple(document.classes), document.rest
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UsageError(
            f"{source}: [classes] has {len(classes)}, a student needs 2 to {MAX_CLASSES}"
        )
    if rest is not None and document.drop:
        raise UsageError(
            f"{source}: has rest and drop, but what is not named is taken or left out: choose one"
        )
    if rest is not None and rest not in document.classes:
        raise UsageError(
            f"{source}: rest = {rest!r} is none of [classes]; "
            f"{_near(rest, classes)}; an empty class is written {rest!r} = []"
        )
    members = tuple(
        tuple(_member(item, where=f"{source}: class {name!r}") for item in items)
        for name, items in document.classes.items()
    )
    return LabelMap(classes, members, rest, document.drop, source)


def _member(item: int | str, *, where: str) -> Member:
    """Return an item of a list as a run of numbers or a name."""
    run = _RUN.fullmatch(item) if isinstance(item, str) else None
    if isinstance(item, str) and run is None:
        return item
    first, last = map(int, run.groups()) if run else (int(item), int(item))
    if not 0 <= first <= last < MAX_CLASSES:
        raise UsageError(
            f"{where}: {item!r}; numbers of classes are 0 to {MAX_CLASSES - 1}, and a run is "
            'written "first..last", the smaller first'
        )
    return range(first, last + 1)


def _joined(runs: Sequence[range]) -> list[list[int]]:
    """Return the numbers of runs as the fewest [first, last] that hold them, in order."""
    joined: list[list[int]] = []
    for run in sorted(runs, key=lambda run: run.start):
        if joined and run.start <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], run.stop - 1)
        else:
            joined.append([run.start, run.stop - 1])
    return joined


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False)[:_SHOWN]:
        place = [str(part) for part in item["loc"]]
        if item["type"] == "extra_forbidden":
            problem = "unknown; allowed: rest, drop, classes"
        elif item["type"] == "missing":
            problem = "missing; expected a table of the student's classes, each with the teacher's"
        elif place[0] == "classes" and len(place) > 1:
            place = [f"class {place[1]!r}"]
            problem = (
                f"expected a list of numbers and names, found {item['input']!r:.80}; "
                "a name that has a dot stands in quotes"
            )
        else:
            problem = f"{item['msg'].lower()}, found {item['input']!r:.80}"
        lines.append(f"{place[0]}: {problem}")
    return "; ".join(dict.fromkeys(lines))


# --- resolved for a teacher ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mapping:
    """Which class of the student each of the teacher's is part of; equal where the ids are.

    classes: names of the student's. student_C: int64, -1 for what is dropped. sizes_S: int64, how
    many of the teacher's classes each has, at least one. id: digest of classes and student_C.
    """

    classes: tuple[str, ...]
    student_C: Tensor
    sizes_S: Tensor
    id: str

    @property
    def num_student(self) -> int:
        """Return the number of the student's classes."""
        return len(self.classes)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def to(self, device: torch.device) -> "Mapping":
        """Return the mapping on a device, where targets are to be mapped."""
        if self.student_C.device == device:
            return self
        student_C, sizes_S = self.student_C.to(device), self.sizes_S.to(device)
        return Mapping(self.classes, student_C, sizes_S, self.id)


def make_mapping(classes: Sequence[str], student: Sequence[int]) -> Mapping:
    """Return the mapping to these classes; student: for each of the teacher's, its place or -1."""
    student_C = torch.tensor(student, dtype=torch.int64)
    sizes_S = torch.bincount(student_C[student_C != _DROPPED], minlength=len(classes))
    content = {"classes": list(classes), "student": list(student)}
    return Mapping(tuple(classes), student_C, sizes_S, digest(content))


def resolve(
    labels: LabelMap, *, num_classes: int, names: tuple[str, ...] | None, source: str
) -> Mapping:
    """Return the mapping for a teacher of so many classes.

    names: of the teacher's classes, in order, if it has any. source: file and teacher, in messages.

    Raises:
        UsageError: the teacher has no such class, or two of a name; a class of the teacher is named
            twice, or maps nowhere; a class of the student has none.
    """
    if names is not None and len(names) != num_classes:
        raise UsageError(
            f"{source}: {len(names)} names are known of a teacher of {num_classes} classes; "
            "expected one for each"
        )
    if num_classes > MAX_CLASSES:
        raise UsageError(f"{source}: a teacher of {num_classes} classes, at most {MAX_CLASSES}")
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names or ()):
        numbers.setdefault(name, []).append(number)
    student = [_DROPPED] * num_classes
    for place, (name, members) in enumerate(zip(labels.classes, labels.members, strict=True)):
        where = f"{source}: class {name!r}"
        for member in members:
            chosen = _named(member, numbers, where=where) if isinstance(member, str) else member
            if chosen[-1] >= num_classes:
                raise UsageError(
                    f"{where}: teacher class {chosen[-1]}; the teacher has {num_classes}, "
                    f"0 to {num_classes - 1}"
                )
            for number in chosen:
                if student[number] != _DROPPED:
                    raise UsageError(
                        f"{where}: teacher class {_shown([number], names)} is also in class "
                        f"{labels.classes[student[number]]!r}; name each class once"
                    )
                student[number] = place
    _place_others(labels, student, names, source=source)
    return make_mapping(labels.classes, student)


def _named(name: str, numbers: dict[str, list[int]], *, where: str) -> Sequence[int]:
    """Return the number of the one class of the teacher that has this name."""
    if not numbers:
        raise UsageError(
            f"{where}: {name!r}; no names are known of the teacher's classes, give their numbers"
        )
    found = numbers.get(name, [])
    if not found:
        raise UsageError(
            f"{where}: the teacher has no class {name!r}; {_near(name, list(numbers))}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{where}: the teacher has {len(found)} classes named {name!r}: {_shown(found, None)}; "
            "give the number"
        )
    return found


def _place_others(
    labels: LabelMap, student: list[int], names: Sequence[str] | None, *, source: str
) -> None:
    """Give the classes that are not named to rest, if any, and check that all classes have some."""
    others = [number for number, place in enumerate(student) if place == _DROPPED]
    if labels.rest is not None:
        rest = labels.classes.index(labels.rest)
        for number in others:
            student[number] = rest
    elif others and not labels.drop:
        raise UsageError(
            f"{source}: {len(others)} of the teacher's {len(student)} classes are not named: "
            f"{_shown(others, names)}; name them, or a rest that takes them, or set drop = true"
        )
    taken = set(student)
    empty = [name for place, name in enumerate(labels.classes) if place not in taken]
    if empty:
        raise UsageError(
            f"{source}: {len(empty)} of {len(labels.classes)} classes have none of the teacher's: "
            f"{_listed(map(repr, empty))}; give each at least one, or leave it out"
        )


def _shown(numbers: Sequence[int], names: Sequence[str] | None) -> str:
    """Return the first few numbers, with their names."""
    return _listed(str(n) if names is None else f"{n} ({names[n]})" for n in numbers)


def _near(name: str, known: Sequence[str]) -> str:
    """Return what is near a name among those known, in any case of letters, or the first of all."""
    folded = {other.casefold(): other for other in reversed(known)}
    near = difflib.get_close_matches(name.casefold(), folded, n=_SHOWN)
    if near:
        return f"near it: {_listed(repr(folded[other]) for other in near)}"
    return f"known: {_listed(map(repr, known))}"


def _listed(words: Iterable[str]) -> str:
    """Return the first few words, and whether there are more."""
    some = list(islice(words, _SHOWN + 1))
    return ", ".join([*some[:_SHOWN], "…"] if len(some) > _SHOWN else some)


# --- numbers -------------------------------------------------------------------------------


def map_logits(logits_NC: Tensor, mapping: Mapping) -> Tensor:
    """Return log-probabilities of the student's classes, float32 (N, S): logits like any others.

    logits_NC: any float dtype. Finite logits give finite results: each group is summed beside its
    own largest, so that none underflows. Logits of -inf count as 1e9 below the row's largest.
    """
    mapping = mapping.to(logits_NC.device)
    largest_N1 = logits_NC.amax(1, keepdim=True)
    return _summed(logits_NC.double() - largest_N1, mapping).log_softmax(1).float()


def map_target(
    full: SparseTarget, tempered: SparseTarget, mapping: Mapping, *, temperature: float
) -> SparseTarget:
    """Return the target over the student's classes at a temperature.

    full: at temperature 1. tempered: the same at `temperature`; it is asked only for its tail.

    Of a sparse target, a row keeps the student's classes of those that it kept, each once: K stays,
    and entries that become one with an earlier one, or are dropped, say S. Its tail is shared out
    evenly among the teacher's classes that are not kept. If K is S or more, it becomes dense. Where
    all mass is dropped, the row is uniform.
    """
    mapping = mapping.to(full.log_tail_N.device)
    if full.indices_NK is None:
        return dense_target(_summed(full.log_probs_NK.double(), mapping) / temperature)

    num_teacher, num_student = len(mapping.student_C), mapping.num_student
    student_C = F.pad(mapping.student_C, (0, 1), value=_DROPPED)
    sizes_S = F.pad(mapping.sizes_S, (0, 1))
    student_NK = student_C[full.indices_NK]
    student_NK = student_NK.masked_fill(student_NK == _DROPPED, num_student)
    first_NK = first_columns(student_NK)
    columns_K = torch.arange(first_NK.shape[1], device=first_NK.device)
    kept_NK = (first_NK == columns_K) & (student_NK < num_student)

    # What is kept, and its share of the tail.
    ones_NK = torch.ones_like(first_NK)
    others_NK = sizes_S[student_NK] - torch.zeros_like(first_NK).scatter_add(1, first_NK, ones_NK)
    share_N1 = log_tail_mean(full, full, num_classes=num_teacher)[:, None]
    entries_NK = torch.logaddexp(
        _log_sums(full.log_probs_NK.double(), first_NK, first_NK.shape[1]),
        share_N1 + others_NK.clamp(min=0).double().log(),
    )
    entries_NK = (entries_NK / temperature).masked_fill(~kept_NK, -math.inf)
    # What is not, a class: the mean of the tail, by how many of the teacher's it has.
    mean_N = log_tail_mean(full, tempered, num_classes=num_teacher, temperature=temperature)
    powers_S = sizes_S.double() ** (1 / temperature)
    places_NK = student_NK.masked_fill(~kept_NK, num_student)
    if entries_NK.shape[1] >= num_student:
        masses_NS = (mean_N[:, None] + powers_S.log()).scatter(1, places_NK, entries_NK)[:, :-1]
        return dense_target(masses_NS)
    left_N = powers_S.sum() - powers_S[places_NK].sum(1)
    tail_N = mean_N + left_N.clamp(min=1).log()
    return normalised(places_NK, entries_NK, tail_N, num_classes=num_student)


def _summed(log_masses_NC: Tensor, mapping: Mapping) -> Tensor:
    """Return the logarithm of each student's class's mass, float64 (N, S)."""
    student_C = mapping.student_C
    place_C = student_C.masked_fill(student_C == _DROPPED, mapping.num_student)
    sums_NS = _log_sums(log_masses_NC, place_C.expand(log_masses_NC.shape), mapping.num_student + 1)
    return sums_NS[:, :-1]


def _log_sums(values_NC: Tensor, places_NC: Tensor, width: int) -> Tensor:
    """Return the logarithm of the sum of exp of the values of each place, (N, width)."""
    values_NC = values_NC.clamp(min=FLOOR)
    start = values_NC.new_full((len(values_NC), width), -math.inf)
    largest = start.scatter_reduce(1, places_NC, values_NC, "amax")
    below_NC = values_NC - largest.gather(1, places_NC)
    return torch.zeros_like(start).scatter_add(1, places_NC, below_NC.exp()).log() + largest
