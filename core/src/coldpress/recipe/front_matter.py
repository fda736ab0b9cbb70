"""Front matter: the YAML at the top of a Markdown file, between two lines of dashes.

---
license: apache-2.0
quant_stage: {quant_modifiers: {QuantizationModifier: {scheme: W8A8}}}
---
# A model card with its recipe
"""

from coldpress.errors import RecipeError

SUFFIX = ".md"

_FENCES = ("---", "+++")


def front_matter(text: str, origin: str) -> str:
    """The YAML of a Markdown file, in the lines where it stands there.

    Raises:
        RecipeError: there is none.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    start = next((i for i, line in enumerate(lines) if line in _FENCES), None)
    end = None if start is None else next((i for i in range(start + 1, len(lines)) if lines[i] == lines[start]), None)
    if start is None or end is None:
        raise RecipeError([f"{origin}: no front matter: a Markdown file holds its recipe between two lines '---'"])
    return "\n" * (start + 1) + "\n".join(text.splitlines()[start + 1 : end])
