"""Closed and full streams, encodings of few characters, warnings that raise, no docstrings: the command runs, or says
why it does not.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from coldpress.cli.surroundings import mend_streams
mend_streams()
with open(sys.argv[1], "w") as file:
    print("result")
    print("progress" * 5000, file=sys.stderr)
    sys.stdin.read()
    file.write(f"{file.fileno() > 2}")
"""


def shell(redirection, *words):
    command = f'{"" if "|" in redirection else "exec "}"$0" "$@" {redirection}'
    return subprocess.run(["bash", "-c", command, sys.executable, *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "<&-", "</dev/null 2>&-", "</dev/null 2>/dev/full"])
def test_files_never_take_the_place_of_a_closed_stream(tmp_path, redirection):
    done = shell(redirection, "-c", PROGRAM, tmp_path / "file")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "True"
    assert done.stdout == ("" if ">&-" in redirection.replace("2>&-", "") else "result\n")


def test_progress_that_nobody_reads_stops_nothing(tmp_path):
    done = shell("2> >(exec <&-; sleep 0.1)", "-c", PROGRAM, tmp_path / "file")

    assert done.returncode == 0
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("redirection", ["", "2>&-"])
def test_an_interpreter_without_docstrings_is_refused(redirection):
    done = shell(redirection, "-OO", "-m", "coldpress", "compress", "model", "-s", "W8A8", "-o", "out")

    assert done.returncode == 2
    assert ("python -OO" in done.stderr) == (redirection == "")


def test_warnings_of_libraries_do_not_end_a_command():
    program = (
        "import warnings; from coldpress.cli.surroundings import mend_warnings as mend; mend(); warnings.warn('x')"
    )
    done = shell("", "-W", "error", "-c", program)

    assert done.returncode == 0
    assert "UserWarning: x" in done.stderr


MAIN = "from coldpress.cli import main; main()"
SIGNS = """
import sys
from pathlib import Path
from coldpress.cli.surroundings import mend_streams
mend_streams()
from coldpress.cli.console import out, print_json, print_path, say
out().print("2 × 3 …")
say("error", "é")
print_path(Path("/a/\\udcff"))
print_json("plan", {"é": "\\udcff ×"})
"""


@pytest.mark.parametrize(
    ("encoding", "table", "message"),
    [
        ("ascii", b"2 x 3 ...", b"\\xe9"),
        ("latin-1", b"2 \xd7 3 ...", b"\xe9"),
        ("utf-8", "2 × 3 …".encode(), "é".encode()),
    ],
)
def test_what_an_encoding_lacks_is_written_plainly(encoding, table, message):
    done = subprocess.run(
        [sys.executable, "-c", SIGNS], capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    first, second, *rest = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (0, b"error: " + message + b"\n")
    assert (first, second) == (table, b"/a/\xff")  # the name of a file has its bytes
    assert json.loads(b"\n".join(rest)) == {"schema": "coldpress-plan/1", "é": "\udcff ×"}


def test_a_pipe_that_is_closed_ends_a_command_as_sigpipe_would():
    done = shell("| true; exit ${PIPESTATUS[0]}", "-c", "import time; time.sleep(0.3); " + MAIN, "schemes", "--json")

    assert (done.returncode, done.stderr) == (141, "")


LEAVING = """
import atexit, sys, threading, time
from coldpress.cli.surroundings import leave_at_once
class Held:
    def __del__(self): print("torn down")
held = sys.held = Held()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
leave_at_once(CODE)
print("went on")
"""


@pytest.mark.parametrize(("code", "status", "message"), [("3", 3, ""), ("None", 0, ""), ("'no'", 1, "no\n")])
def test_one_of_several_processes_does_what_is_to_be_done_at_its_end_and_is_not_torn_down(code, status, message):
    program = LEAVING.replace("CODE", code)
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | more)
        for more in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1"})
    ]

    assert (done[0].returncode, done[0].stdout, done[0].stderr) == (status, "thread\nat exit\n", message)
    assert done[1].stdout.startswith("went on\n")
