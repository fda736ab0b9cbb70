"""What `--json` prints: one object a command, whose first key, `schema`, names its form and the version of that.

A version counts up when a key goes, is renamed, or means something else; a key that is added changes nothing.
Every key is documented in docs/cli.md.
"""

from collections.abc import Mapping
from typing import Any

VERSIONS = {
    "compress": 1,
    "convert": 1,
    "datasets": 1,
    "defaults": 1,
    "demo": 1,
    "diff": 1,
    "evaluate": 1,
    "inspect": 1,
    "plan": 1,
    "plugin": 1,
    "plugins": 1,
    "recipe": 1,
    "recipes": 1,
    "scheme": 1,
    "schemes": 1,
    "trace": 1,
    "train": 1,
}
"""Name of each form to its version."""


def versioned(form: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content behind the name of its form.

    Args:
        form: one of `VERSIONS`.
        content: keys and values of JSON, `schema` not among them.
    """
    assert "schema" not in content, "the key that names the form"
    return {"schema": f"coldpress-{form}/{VERSIONS[form]}", **content}
