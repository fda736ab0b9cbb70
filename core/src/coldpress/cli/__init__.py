"""`coldpress ...`: a thin shell over the public API, one file per command.

Nothing here imports torch before a command needs it, so that `--help` answers at once.
"""

import sys

from coldpress.arguments.interpreter import check_interpreter
from coldpress.cli.surroundings import leave_at_once, mend_streams, mend_warnings
from coldpress.errors import ArgumentError


def main() -> None:
    """Run the command that the process was called with, and exit."""
    try:
        mend_streams()
        mend_warnings()
        check_interpreter()
        from coldpress.cli.app import app

        app(prog_name="coldpress")
    except ArgumentError as error:  # of the interpreter; all others are met in border.py
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except SystemExit as end:
        leave_at_once(end.code)
        raise
    except KeyboardInterrupt:  # before a command began; inside one border.py sees to it
        sys.stderr.write("interrupted\n")
        sys.exit(130)
