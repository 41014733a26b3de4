"""What kdcache notes in the weights and programs that it writes: JSON, data and nothing more.

The spec of the student in it is text for people; no network is ever built by it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcache.errors import UsageError
from kdcache.models.source import Inputs, Takes, Triple

NOTES = "kdcache"  # its name in the files
NOTES_BYTES = 2**20

_Deviation = Annotated[float, Field(gt=0)]


class Notes(BaseModel):
    """What weights or a program take and tell apart; None where nothing is noted.

    size: side of the images, in pixels. classes: their names, in order.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    takes: Takes | None = None
    size: Annotated[int, Field(ge=1, le=2**14)] | None = None
    mean: Triple | None = None
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None
    classes: tuple[str, ...] | None = None


def read_notes(text: bytes | str | None) -> Notes:
    """Return the notes of a program; without any, notes that say nothing.

    Raises:
        UsageError: they are no JSON of this kind, or out of range.
    """
    if text is None:
        return Notes()
    if len(text) > NOTES_BYTES:
        raise UsageError(f"{NOTES!r} in it takes {len(text)} B, expected at most {NOTES_BYTES}")
    try:
        return Notes.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, ("", *first["loc"])))
        raise UsageError(
            f"{NOTES!r} in it, which `kdcache export` writes: {where[1:]}: {first['msg']}; export "
            "it again"
        ) from None


def known_inputs(notes: Notes, *, takes: Takes, height: int | None, width: int | None) -> Inputs:
    """Return what images a program was made for, from its notes and from its shapes.

    height, width: what it takes, in pixels; None for any.

    Raises:
        UsageError: it takes no squares, or the notes say otherwise.
    """
    if height != width:
        one, other = (side if side is not None else "any" for side in (height, width))
        raise UsageError(f"takes images of {one} x {other} pixels, kdcache makes squares")
    if notes.takes not in (None, takes):
        raise UsageError(f"takes {takes}, its notes say {notes.takes}; export it again")
    if height is not None and notes.size not in (None, height):
        raise UsageError(f"takes {height} x {height} pixels, its notes say {notes.size}")
    size = notes.size if height is None else height
    return Inputs(size=size, mean=notes.mean, std=notes.std)
