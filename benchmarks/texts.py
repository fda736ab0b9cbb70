"""Texts of other origin than coldpress/short, for `compare.py --text`: a file with one passage a line.

    python benchmarks/texts.py news out/news.jsonl         Australian news of 2000 and 2001, from the wheel of gensim
    python benchmarks/texts.py library out/library.jsonl   docstrings of Python's standard library

`news` is Lee's background corpus, which gensim ships with its tests; pip downloads the wheel.
Passages of `library` are those of the running Python, so they differ a little between versions.
"""

import argparse
import ast
import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

GENSIM = "gensim==4.4.0"
NEWS = "gensim/test/test_data/lee_background.cor"
LEAST = 2500  # characters of a passage, which are 512 tokens of prose or more


def news() -> Iterator[str]:
    """A document a line."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", GENSIM, "--no-deps", "--quiet", "--dest", folder]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            yield from wheel.read(NEWS).decode("utf-8").splitlines()


def library() -> Iterator[str]:
    """Docstrings of modules, classes and functions, in the order of their files."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def passages(parts: Iterator[str]) -> Iterator[str]:
    """Neighbours joined until they are long enough; what is left at the end is left out."""
    gathered: list[str] = []
    for part in parts:
        gathered += [part.strip()] if part.strip() else []
        if sum(map(len, gathered)) >= LEAST:
            yield "\n\n".join(gathered)
            gathered = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["news", "library"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    lines = [json.dumps({"text": one}) for one in passages({"news": news, "library": library}[options.name]())]
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} passages in {options.file}")


if __name__ == "__main__":
    main()
