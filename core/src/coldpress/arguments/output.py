"""Where the result goes."""

from typing import Any

from attrs import Attribute, field, frozen

from coldpress.arguments.checks import is_a, path
from coldpress.errors import ArgumentError


def _to_formats(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
        raise ArgumentError(f"format must be a name, a list of names or None, got {value!r}")
    if len(set(value)) < len(value):
        raise ArgumentError(f"format names one twice: {', '.join(value)}")
    return tuple(value)


@frozen(kw_only=True, eq=False)
class OutputArguments:
    """Where the result goes.

    Attributes:
        output_dir: folder of the checkpoint; None writes nothing.
        log_dir: folder of a log file of the run; None writes none.
        overwrite: replace `output_dir` if it exists; otherwise that is an error, before any work is done.
        restart: discard what an interrupted run has left beside `output_dir`; otherwise it is gone on with.
        format: name of the checkpoint format; None is compressed-tensors.  Of a list of names each is
            written, in a folder of its name inside of `output_dir`.
        quantization_format: the form of the weights within the format, such as "pack-quantized"; None lets the
            format choose by scheme.
        return_model: return the compressed model; False returns None, and after a run that streams its weights saves
            the time and memory to load the result.
        quiet: no progress bars.
    """

    output_dir: str | None = field(default=None, converter=path, validator=is_a(str, optional=True))
    log_dir: str | None = field(default=None, converter=path, validator=is_a(str, optional=True))
    overwrite: bool = field(default=False, validator=is_a(bool))
    restart: bool = field(default=False, validator=is_a(bool))
    format: str | tuple[str, ...] | None = field(default=None, converter=_to_formats)
    quantization_format: str | None = field(default=None, validator=is_a(str, optional=True))
    return_model: bool = field(default=True, validator=is_a(bool))
    quiet: bool = field(default=False, validator=is_a(bool))

    @overwrite.validator
    @restart.validator
    def _check_output(self, attribute: "Attribute[Any]", asked: bool) -> None:
        if asked and self.output_dir is None:
            raise ArgumentError(f"{attribute.name}=True goes with output_dir, which is missing")
