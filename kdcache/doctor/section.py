"""What the doctor says of one thing, and how a step that fails is told without ending the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcache.errors import KdcacheError
from kdcache.stores.location import without_credentials

State = Literal["fine", "warning", "failed"]


@dataclass(frozen=True)
class Section:
    """One line of the report. text: for people. value: the same for programs, as JSON takes it.

    error: why the step failed, if it did.
    """

    text: str
    value: dict[str, Any] = field(default_factory=dict)
    state: State = "fine"
    error: Exception | None = None

    def line(self) -> str:
        """Return the text, marked where it is no good news."""
        return self.text if self.state == "fine" else f"{self.state}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the section as JSON has it."""
        return {"state": self.state, "text": self.text, **self.value}


def judged(text: str, warning: str | None, **value: Any) -> Section:
    """Return a section; with a warning, which follows the text, if there is one."""
    if warning is None:
        return Section(text, value)
    return Section(f"{text}: {warning}", value, "warning")


def attempt(step: Callable[[], Section]) -> Section:
    """Return what a step finds, or how it failed."""
    try:
        return step()
    except KdcacheError as error:
        return Section(str(error), state="failed", error=error)
    except Exception as error:  # the other steps still have something to tell
        text = without_credentials(" ".join(str(error).split()))
        return Section(f"{type(error).__name__}: {text}", state="failed", error=error)
