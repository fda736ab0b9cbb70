"""Every installed observer, by name: `from coldpress.observers import MinMax`."""

from coldpress.installed import installed_names

__getattr__, __dir__ = installed_names(__name__, "observers")
