"""Libraries that make models, kept to what matters: there or not, silent, and one sentence.

They talk to stderr, warn, and raise errors of many kinds over several lines. None of that reaches
who runs kdcache, and none of their settings stay changed.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

from kdcache.errors import UsageError


def need(module: str, *, extra: str, spec: str) -> Any:
    """Return a library of one of kdcache's extras, imported.

    Raises:
        UsageError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{spec}: needs {module.partition('.')[0]}; pip install 'kdcache[{extra}]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print, log and warn of to itself; errors say what matters.

    Import them before: a log handler that is made in here would write to nowhere ever after.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    line = (plain.splitlines() or [""])[0].split(" For more information")[0]
    return line.rstrip(".") or type(error).__name__
