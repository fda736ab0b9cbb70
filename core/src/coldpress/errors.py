"""What can go wrong, drawn as a tree; everything here is a mistake that a user can mend.

ColdpressError
├── ArgumentError            an entry point (`oneshot`, the command line) was given something it cannot use
│   └── SettingError         a modifier has no setting of this name; a TypeError, too
├── RecipeError              a recipe cannot be read; carries every problem found, with its place
├── PluginError
│   ├── UnknownPluginError   no installed distribution offers this name
│   ├── PluginConflictError  two distributions offer one name
│   └── BrokenPluginError    the plugin is installed, importing or calling it fails
├── SchemeError              a scheme contradicts itself or does not fit a layer
├── TargetError              targets match nothing, or a layer that should be reached was not
├── ModelError               a model or tokenizer cannot be loaded or compressed
├── CheckpointError          a file of a checkpoint is missing, corrupt, or would be overwritten
├── CalibrationError         calibration data are missing, empty or of the wrong form
├── NumericsError            NaN or Inf in a weight or an activation
└── RankError                another process of the run failed or ended, or works on something else
"""

import errno
from collections.abc import Iterable

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}


class ColdpressError(Exception):
    """The root of all errors that a user can mend: what was wrong, where, and what to do."""


class ArgumentError(ColdpressError):
    """An entry point was given an argument that it cannot use."""


class SettingError(ArgumentError, TypeError):
    """A modifier has no setting of this name."""


class RecipeError(ColdpressError):
    """A recipe cannot be read.

    Attributes:
        problems: one line each: file, line, column, path, what is wrong, what to do.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class PluginError(ColdpressError):
    """Something about a plugin, not about its settings."""


class UnknownPluginError(PluginError):
    """No installed distribution offers this name."""


class PluginConflictError(PluginError):
    """Two installed distributions offer one name."""


class BrokenPluginError(PluginError):
    """An installed plugin cannot be imported or does not keep its contract."""


class SchemeError(ColdpressError):
    """A quantization scheme contradicts itself or does not fit a layer.

    Attributes:
        place: the way from the setting of a modifier to what is wrong in it, where that is known.
    """

    def __init__(self, message: str = "", *, place: tuple[str, ...] = ()) -> None:
        self.place = place
        super().__init__(message)


class TargetError(ColdpressError):
    """Targets match nothing, or a layer that a recipe should reach was not reached."""


class ModelError(ColdpressError):
    """A model or its tokenizer cannot be loaded or compressed."""


class CheckpointError(ColdpressError):
    """A file of a checkpoint is missing, corrupt, or would be overwritten."""


class CalibrationError(ColdpressError):
    """Calibration data are missing, empty or of the wrong form."""


class NumericsError(ColdpressError):
    """NaN or Inf in a weight or an activation."""


class RankError(ColdpressError):
    """Another process of a run of several failed or ended, or works on something else."""


def must_implement(one: object, method: str) -> BrokenPluginError:
    """What a base class raises in place of a method that every subclass has, such as `range(statistic)`."""
    kind = type(one)
    return BrokenPluginError(f"{kind.__module__}.{kind.__qualname__} must implement {method}")


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the machine gave out, in memory, space or permission, so that no code is to blame."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of tempfile: there is no place to write
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE
