"""A package of plugins as pip leaves it, without pip: a module and its metadata in a folder."""

from collections.abc import Mapping
from pathlib import Path


def write_package(
    folder: Path, name: str, source: str, points: Mapping[str, Mapping[str, str]], *, version: str = "0.1.0"
) -> None:
    """Write a module and its metadata; with `folder` on `sys.path` it is installed.

    Args:
        folder: made if it is not there.
        name: of the module, and, with - for _, of the distribution.
        source: of the module.
        points: group of entry points, such as `coldpress.modifiers`, to name and `module:attribute`.
        version: of the distribution.
    """
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in offers.items()) for group, offers in points.items()]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("\n\n".join(lines) + "\n")
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
