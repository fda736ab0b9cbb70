"""`coldpress ...`: a thin shell over the public API, one file per command.

Nothing here imports torch before a command needs it, so that `--help` answers at once.
"""

import sys


def main() -> None:
    """Run the command that the process was called with, and exit."""
    try:
        from coldpress.cli.app import app

        app(prog_name="coldpress")
    except KeyboardInterrupt:  # before a command began; inside one border.py sees to it
        sys.stderr.write("interrupted\n")
        sys.exit(130)
