"""Where errors become messages and exit codes.

0    done
1    a bug of coldpress or of a plugin, or the machine gave out (no space, no memory, no permission)
2    a mistake that the user can mend, or a wrong use of an option
130  interrupted
"""

import errno
import functools
import inspect
import os
import traceback
from collections.abc import Callable
from typing import Any

import typer

from coldpress.cli.console import Told, say
from coldpress.errors import BrokenPluginError, ColdpressError

FAILED = 1
MISTAKEN = 2
INTERRUPTED = 130

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EIO}


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option `--debug`, its errors told as this module says."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        try:
            with Told(quiet=options.get("quiet", False)):
                command(*args, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt as error:
            say_interrupted()
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:
            raise  # whoever read our output has seen enough; typer ends quietly
        except Exception as error:
            raise typer.Exit(_tell(error, debug=debug)) from error

    from coldpress.cli.option import Debug

    signature = inspect.signature(command)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, debug])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "debug": Debug}
    return run


def say_interrupted() -> None:
    """The line that Ctrl-C ends with."""
    say("interrupted", "stopped before the end", style="yellow")


def _tell(error: Exception, *, debug: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if debug:
        say("traceback", "".join(traceback.format_exception(error)).rstrip(), style="dim")
    if isinstance(error, ColdpressError):
        say("error", str(error))
        if isinstance(error, BrokenPluginError) and not debug:
            say("hint", "--debug shows the plugin's own traceback", style="cyan")
        return MISTAKEN
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        say("error", f"out of memory; use a smaller batch or model, or another device ({_plain(error)})")
    elif isinstance(error, OSError) and error.errno in _MACHINE:
        say("error", _plain(error))
    else:
        more = "" if debug else "; --debug shows the traceback"
        say("error", f"this is a bug of {_culprit(error)}: {type(error).__name__}: {_plain(error)}{more}")
    return FAILED


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        where = f": {os.fspath(error.filename)}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def _culprit(error: BaseException) -> str:
    """Whose code raised: the plugin or coldpress, whichever is nearest to where it happened."""
    from coldpress import registry

    owners = {"coldpress": "coldpress"}
    for kind in registry.KINDS:
        for plugin in registry.available(kind):
            if not plugin.entry.value.startswith("coldpress."):
                package = plugin.entry.value.partition(":")[0].partition(".")[0]
                owners.setdefault(package, f"the plugin {plugin.distribution} {plugin.version}".rstrip())
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    named = [owners[package] for package in (name.partition(".")[0] for name in frames) if package in owners]
    return named[-1] if named else "coldpress"
