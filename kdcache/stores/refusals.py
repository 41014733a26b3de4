"""What to tell of an error of a store, and whether the same request may well succeed.

Invariant: nothing of an error's text is told but its status, its code and its number of the
operating system: the rest may hold credentials, as addresses do.
"""

import os
import re
from pathlib import Path

from kdcache.errors import KdcacheError, UsageError
from kdcache.stores.location import Place

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
# The network failed. Each error of a plain HTTP store begins with "Generic HTTP error".
_NETWORK = re.compile(r"(?<!Generic )HTTP error")
_SYSTEM = re.compile(r"\(os error (\d{1,3})\)")
_PASSING = {"408", "429", "500", "502", "503", "504"}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "InternalError", "NoSuchUpload"}
_METADATA = ("169.254.169.254", "169.254.170", "metadata.google.internal", "metadata/identity")
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
)


class WrongError(Exception):
    """Other bytes came than were asked for. Its text is ours."""


def is_passing(error: BaseException) -> bool:
    """Return whether the same request may well succeed."""
    text = str(error)
    code = _CODE.search(text)
    if code is not None and code[1] in _PASSING_CODES:
        return True
    if is_wrong(error):
        return True
    if type(error).__name__ != "GenericError" or _names_metadata(text):
        return False
    status = _STATUS.search(text)
    return _NETWORK.search(text) is not None if status is None else status[1] in _PASSING


def is_wrong(error: BaseException) -> bool:
    """Return whether the store answered, but not with what was asked for.

    As with another range, no length, or a listing that cannot be read.
    """
    if isinstance(error, WrongError):
        return True
    text = str(error)
    if type(error).__name__ != "GenericError" or _STATUS.search(text) or _NETWORK.search(text):
        return False
    return not any(mark in text for mark in ("LocalFileSystem", *_METADATA))


def _names_metadata(text: str) -> bool:
    return any(mark in text for mark in _METADATA)


def missing(where: Place, error: FileNotFoundError) -> OSError | KdcacheError:
    """Return what to tell of an object that is missing, or its bucket."""
    code = _CODE.search(str(error))
    if code is not None and code[1] == "NoSuchBucket":
        return UsageError(f"{where}: there is no such bucket; check its name, or create it")
    return FileNotFoundError(f"{where}: there is no such object")


def refused(where: Place, error: BaseException) -> UsageError:
    """Return what to tell of another error."""
    text, kind = str(error), type(error).__name__
    status, code = _STATUS.search(text), _CODE.search(text)
    system = _SYSTEM.search(text)
    found = "".join(f" ({m[1]})" for m in (status, code) if m)
    if isinstance(where, Path) and system is not None:
        return UsageError(f"{where}: {os.strerror(int(system[1]))}; free space, or check rights")
    if _names_metadata(text) or "MissingAccount" in text:
        return UsageError(
            f"{where}: no credentials were found; set {_CREDENTIALS} in the environment "
            "(AWS_SKIP_SIGNATURE=true for a bucket that all may read)"
        )
    if code is not None and code[1] == "NoSuchBucket":
        return UsageError(f"{where}: there is no such bucket; check its name, or create it")
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or (
        status is not None and status[1] in ("400", "401", "403")
    ):
        return UsageError(
            f"{where}: the store refuses{found}; check that the credentials are set, have not "
            "expired, and give access"
        )
    if "InvalidRange" in text or (status is not None and status[1] == "416"):
        return UsageError(
            f"{where}: the object ends before the bytes that were asked for; it was replaced or "
            "damaged: fetch its manifest again"
        )
    if isinstance(error, WrongError):
        return UsageError(f"{where}: {error}; run the same command again")
    if "RangeNotSupported" in str(error):
        return UsageError(
            f"{where}: the server does not answer requests for ranges; use one that does, such as "
            "nginx, or a bucket"
        )
    if kind == "NotSupportedError" or (status is not None and status[1] in ("405", "501")):
        return UsageError(
            f"{where}: the server does not do this{found}: plain HTTP is for reading, with ranges, "
            "and without listing; use a bucket, or a server with ranges such as nginx"
        )
    return _other(where, error, found)


def _other(where: Place, error: BaseException, found: str) -> UsageError:
    text, kind = str(error), type(error).__name__
    if found:
        return UsageError(f"{where}: the server answers{found}; check the address, or try again")
    if is_wrong(error):
        return UsageError(
            f"{where}: the server answers, but not with what was asked for, or says no length; "
            "leave out a proxy that changes answers, or use another server"
        )
    if _NETWORK.search(text):
        return UsageError(
            f"{where}: the store does not answer, or not to the end; check the address and the "
            "network, then run the same command again"
        )
    if kind == "ValueError" or "InvalidPath" in text:
        return UsageError(
            f"{where}: no name that stores take; leave out .., //, #1 at its end and control codes"
        )
    return UsageError(f"{where}: the store cannot be used ({kind}); check its address and settings")


def unusable(place: Place, error: BaseException) -> UsageError:
    """Return what to tell of a location that obstore does not accept, or its settings."""
    if "MissingAccount" in str(error):
        return refused(place, error)
    return UsageError(
        f"{place}: no address of a store that can be used, or its settings in the environment "
        f"cannot ({type(error).__name__}); check both"
    )
