"""Everything that this package raises on purpose.

    DiverseError
    ├── InputError (ValueError)      what came in is wrong: the message says what was expected, what came, what to do
    │   ├── DataError                images or labels: file, shape, dtype, range, classes
    │   └── RecipeError              a setting or a recipe
    ├── BankError                    a bank on disk
    │   ├── BankCorruptError         a shard or the manifest is not what was written
    │   └── BankMismatchError        the bank was grown by another recipe, or holds images of another kind
    ├── StorageError (OSError)       the disk refused: full, read-only
    ├── WorkerError (RuntimeError)   processes that draw samples die again and again
    └── MissingExtraError (ImportError)   an optional package is not installed; the message names the extra

The command line prints the message of a `DiverseError` on one line and exits with its `exit_code`.
"""

from __future__ import annotations


class DiverseError(Exception):
    """Base of all errors that the package raises on purpose."""

    exit_code = 2


class InputError(DiverseError, ValueError):
    """What came in is wrong."""


class DataError(InputError):
    """Images or labels are not what was expected."""


class RecipeError(InputError):
    """A setting or a recipe is not what was expected."""


class BankError(DiverseError):
    """A bank on disk cannot be used as asked."""


class BankCorruptError(BankError):
    """A shard or the manifest is not what was written."""

    exit_code = 1


class BankMismatchError(BankError):
    """The bank belongs to another recipe or holds images of another kind."""


class StorageError(DiverseError, OSError):
    """The disk refused a write; what was stored before is intact."""


class WorkerError(DiverseError, RuntimeError):
    """Workers that draw samples died again and again; what was stored before is intact."""

    exit_code = 1


class MissingExtraError(DiverseError, ImportError):
    """An optional package is not installed."""
