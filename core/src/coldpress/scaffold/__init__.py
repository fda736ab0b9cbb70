"""A package of a new plugin: a folder that installs and whose tests pass as it is, to be changed from there."""

from coldpress.scaffold.package import SCAFFOLDED, new_package

__all__ = ["SCAFFOLDED", "new_package"]
