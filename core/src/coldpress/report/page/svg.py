"""Marks of a plot, as XML: every text is escaped, and a mark has a title that is shown when it is pointed at."""

import math
import re
from xml.etree import ElementTree

from attrs import frozen

_MOST_TICKS = 10
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
SHAPES = ("circle", "square", "triangle", "diamond", "cross")


@frozen
class Axis:
    """A scale of a plot.

    Attributes:
        low: smallest number.
        high: largest number, above `low`.
        start: position of `low`.
        end: position of `high`.
        log: whether equal steps are equal ratios; numbers are positive then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a number; what is outside is at the border."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers inside; on a log scale 1, 2 and 5 of each decade, more where these are few, else decades."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
                every = [digit * 10.0**decade for decade in decades for digit in digits]
                found = [value for value in every if self.low <= value <= self.high]
                if len(found) <= _MOST_TICKS:
                    break
            return found
        step = _round_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


def log_axis(values: list[float], start: float, end: float) -> Axis:
    """A log scale around positive numbers, at least a factor of 2 wide."""
    low, high = min(values), max(values)
    middle = math.sqrt(low * high)
    half = math.sqrt(2)
    return Axis(min(low / 1.1, middle / half), max(high * 1.1, middle * half), start, end, log=True)


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no smaller."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(digit * decade for digit in (1, 2, 5, 10) if digit * decade >= least * (1 - 1e-9))


class Drawing:
    """An SVG picture.

    Args:
        width: in pixels of its own; it takes the width of the page.
        height: as `width`.
        label: what it shows, for readers that see no picture.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": printable(label)}
        self.root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **box})

    def add(self, tag: str, *, title: str = "", text: str = "", **attributes: float | str) -> None:
        """Add a mark; `class_` is the attribute `class`, and an underscore is a hyphen."""
        named = {name.rstrip("_").replace("_", "-"): _written(value) for name, value in attributes.items()}
        mark = ElementTree.SubElement(self.root, tag, named)
        if text:
            mark.text = printable(text)
        if title:
            ElementTree.SubElement(mark, "title").text = printable(title)

    def bar(self, at: tuple[float, float], size: tuple[float, float], *, class_: str, title: str = "") -> None:
        """A rectangle, by its upper left corner and by width and height."""
        self.add("rect", x=at[0], y=at[1], width=size[0], height=size[1], class_=class_, title=title)

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", class_: str = "label") -> None:
        """Write words, on the line that goes through a point."""
        self.add("text", text=words, x=x, y=y, text_anchor=anchor, class_=class_)

    def point(self, x: float, y: float, shape: int, *, class_: str, title: str, size: float = 3.5) -> None:
        """A point in one of the shapes, so that series differ without colours too."""
        r, kind = size, SHAPES[shape % len(SHAPES)]
        if kind == "circle":
            self.add("circle", cx=x, cy=y, r=r, class_=class_, title=title)
            return
        corners = {
            "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
            "triangle": [(0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r)],
            "diamond": [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
            "cross": [(-r, -r), (0, -r / 3), (r, -r), (r / 3, 0), (r, r), (0, r / 3), (-r, r), (-r / 3, 0)],
        }[kind]
        path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        self.add("polygon", points=path, class_=class_, title=title)

    def __str__(self) -> str:
        return ElementTree.tostring(self.root, encoding="unicode")


def printable(text: str) -> str:
    """The text without characters that XML does not have; a replacement character stands for each."""
    return _NOT_XML.sub("\ufffd", text)


def _written(value: float | str) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
