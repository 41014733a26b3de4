"""The error tree, grouped by what the reader of a message should do.

    KdcacheError
      UsageError (2)        fix the command or the file that you wrote
      MismatchError (3)     other teacher, recipe, data or library: use another cache
      IncompleteError (4)   views or tiles are missing: run precompute again
      CorruptError (5)      a digest differs: repair or recompute the tile named
      UntrustedError (6)    signature missing or unknown
      DataError (7)         an input image or tar is bad

A message says where, what was found, what was expected and the next step.
"""


class KdcacheError(Exception):
    """Anything that kdcache refuses; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(KdcacheError):
    """The command, or a file that the user wrote, must be fixed."""

    exit_code = 2


class MismatchError(KdcacheError):
    """The cache belongs to another teacher, recipe, dataset or library."""

    exit_code = 3


class IncompleteError(KdcacheError):
    """Views or tiles are missing; precompute must run again."""

    exit_code = 4


class CorruptError(KdcacheError):
    """Stored bytes differ from their digest."""

    exit_code = 5


class UntrustedError(KdcacheError):
    """A signature is missing or unknown."""

    exit_code = 6


class DataError(KdcacheError):
    """An input image or tar is bad."""

    exit_code = 7
