"""`coldpress port`: a script written for llm-compressor, as one for coldpress."""

import os
import stat
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldpress.cli.console import say
from coldpress.cli.option import option
from coldpress.errors import ArgumentError

if TYPE_CHECKING:
    from coldpress.porting import Ported

_HEADINGS = {"dropped": "dropped", "kept": "kept", "missing": "no equivalent", "note": "note"}
_STYLES = {"missing": "bold yellow"}


def port(
    script: Annotated[Path, typer.Argument(help="A Python file that imports llmcompressor.", show_default=False)],
    *,
    output: Annotated[
        Path | None, option(None, "--output/-o", "FILE", "Where to write it.", shown="standard output")
    ] = None,
    overwrite: Annotated[bool, option(None, "--overwrite", None, "Replace FILE if it exists.")] = False,
    in_place: Annotated[bool, option(None, "--in-place", None, "Replace SCRIPT itself.")] = False,
) -> None:
    """Rewrite the imports of a script that was written for llm-compressor.

    What is dropped, and what has no equivalent here, is told with its line.

    coldpress port quantize.py --output quantize_coldpress.py
    """
    from coldpress.porting import port as port_text

    _check_options(script, output, overwrite=overwrite, in_place=in_place)
    content = _read(script)
    text, encoding = _decode(script, content)
    ported = port_text(text, str(script))
    result = ported.text.encode(encoding)
    if in_place:
        _write(script, result, before=content)
    elif output is not None:
        _write(output, result)
    else:
        typer.echo(result, nl=False)
    _print_summary(script, ported)


def _check_options(script: Path, output: Path | None, *, overwrite: bool, in_place: bool) -> None:
    """Refuse to write over a file unasked.

    Raises:
        ArgumentError: names the option.
    """
    if in_place and output is not None:
        raise ArgumentError("give either --output FILE or --in-place, not both")
    if overwrite and output is None:
        raise ArgumentError("--overwrite goes with --output, which is missing")
    if output is None:
        return
    target = output.expanduser()
    if target.exists() and script.exists() and target.samefile(script):
        raise ArgumentError(f"{output} is the script itself: say --in-place if it shall be replaced")
    if target.exists() and not target.is_file():
        raise ArgumentError(f"{output} is no file")
    if target.exists() and not overwrite:
        raise ArgumentError(f"{output} exists; --overwrite replaces it")
    if not target.parent.is_dir():
        raise ArgumentError(f"{output}: there is no folder {target.parent}")


def _read(script: Path) -> bytes:
    path = script.expanduser()
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ArgumentError(f"{script} is {'a folder' if stat.S_ISDIR(mode) else 'no file'}: name one script")
        return path.read_bytes()
    except PermissionError:
        raise  # the machine's to say
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{script} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(script: Path, content: bytes) -> tuple[str, str]:
    """The text of a script, and its encoding: as its first lines say, else UTF-8."""
    try:
        encoding, _ = tokenize.detect_encoding(iter(content.splitlines(keepends=True)).__next__)
        return content.decode(encoding), encoding
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{script}: this is no Python: {error}") from error


def _write(target: Path, content: bytes, *, before: bytes | None = None) -> None:
    """Put a file in its place, at once or not at all.

    Args:
        target: the file; what a link leads to, where it is one.
        content: of the file.
        before: what it must hold until then.

    Raises:
        ArgumentError: it holds something else.
    """
    target = target.expanduser().resolve()
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        if target.exists():
            new.chmod(stat.S_IMODE(target.stat().st_mode))
        if before is not None and target.read_bytes() != before:
            raise ArgumentError(f"{target} was changed while it was ported, and is left alone; call again")
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _print_summary(script: Path, ported: "Ported") -> None:
    """What was dropped, kept, or has no equivalent, by line."""
    for remark in ported.remarks:
        text = f"{script}:{remark.line}: {remark.name}: {remark.why}"
        say(_HEADINGS[remark.kind], text, style=_STYLES.get(remark.kind, "cyan"))
