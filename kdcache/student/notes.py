"""What a weights file that kdcache wrote says of its student."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from kdcache.errors import UsageError
from kdcache.models.teacher import Triple


class Notes(BaseModel):
    """How the student was made; None where the file does not say. It is text from a file.

    student: its spec, only ever shown or compared, unless it is torchvision's. mean, std: its
    normalisation.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    student: str | None = None
    mean: Triple | None = None
    std: Triple | None = None


def read_notes(path: Path) -> Notes:
    """Return the notes of a weights file; empty ones where it has none.

    Raises:
        UsageError: the file is missing or damaged, or its notes are none of kdcache's.
    """
    if path.suffix != ".safetensors":
        return Notes()
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("kdcache")
        return Notes() if text is None else Notes.model_validate_json(text)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such weights file; name one, or the folder of a run that has ended"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a readable weights file: {error}") from error
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"])) or "text"
        raise UsageError(
            f"{path}: its kdcache notes are damaged: {where}: {found['msg']}; train again, or "
            "take the file from a copy"
        ) from error


def spec_of(notes: Notes, path: Path) -> str:
    """Return the spec of a weights file's student, if nothing but torchvision's code runs for it.

    Raises:
        UsageError: there is none, or it names code, which a file must not choose.
    """
    if notes.student is None:
        raise UsageError(f"{path}: does not say which network it is of; name it with --student")
    if not notes.student.startswith("torchvision:"):
        raise UsageError(
            f"{path}: says it is of {notes.student!r}, which is code of your own and not imported "
            "because a file names it; name it with --student"
        )
    return notes.student
