"""Where errors become messages and exit codes.

0    done
1    a bug of coldpress, or the machine gave out (no space, no memory, no permission)
2    a mistake that the user can mend, a bug of a plugin, or a wrong use of an option
130  interrupted
141  whoever reads our output has closed the pipe
"""

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer

from coldpress.cli.console import Told, say
from coldpress.cli.words import in_options
from coldpress.errors import BrokenPluginError, ColdpressError, is_of_the_machine

FAILED = 1
MISTAKEN = 2
INTERRUPTED = 130
PIPE_CLOSED = 141  # as of a program that SIGPIPE ends


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option `--debug`, its errors told as this module says."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        try:
            with Told(quiet=options.get("quiet", False), words=in_options(command)):
                command(*args, **options)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except KeyboardInterrupt as error:
            say_interrupted()
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            _drop_output()
            raise typer.Exit(PIPE_CLOSED) from error
        except Exception as error:
            raise typer.Exit(exit_code_of(error, debug=debug, words=in_options(command))) from error

    from coldpress.cli.option import Debug

    signature = inspect.signature(command)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, debug])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "debug": Debug}
    return run


def _drop_output() -> None:
    """Lose what standard output still holds, which Python would write at its end, to the pipe that is closed."""
    with suppress(OSError, ValueError):  # of a program that has put its own in place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_interrupted() -> None:
    """The line that Ctrl-C ends with."""
    say("interrupted", "stopped before the end", style="yellow")


def exit_code_of(error: Exception, *, debug: bool, words: Callable[[str], str] = str) -> int:
    """Say what went wrong; the code that the process exits with.

    Args:
        error: that ends the command.
        debug: show its traceback.
        words: the message in the words of the command.
    """
    if debug:
        say("traceback", "".join(traceback.format_exception(error)).rstrip(), style="dim")
    if isinstance(error, ColdpressError):
        say("error", words(str(error)))
        if isinstance(error, BrokenPluginError) and not debug:
            say("hint", "--debug shows the plugin's own traceback", style="cyan")
        return MISTAKEN
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        say("error", f"no file system takes so long a name: {os.fsdecode(error.filename or '')[:60]!r}...")
        return MISTAKEN
    if is_of_the_machine(error):
        out = "out of memory; use a smaller batch or model, or another device"
        say("error", _plain(error) if isinstance(error, OSError) else f"{out} ({_plain(error)})")
        return FAILED
    plugin, more = _culprit(error), "" if debug else "; --debug shows the traceback"
    who = "coldpress" if plugin is None else f"the plugin {plugin}"
    say("error", f"this is a bug of {who}: {type(error).__name__}: {_plain(error)}{more}")
    return FAILED if plugin is None else MISTAKEN


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        where = f": {os.fspath(error.filename)}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def _culprit(error: BaseException) -> str | None:
    """The plugin whose code raised, if it is nearer to where that happened than coldpress is; None else."""
    from coldpress.registry import owner_of

    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        owner = None if package == "coldpress" else owner_of(package)
        if package == "coldpress" or owner is not None:
            return owner
    return None
