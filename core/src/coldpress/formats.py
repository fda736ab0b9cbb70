"""Every installed format, by name: `from coldpress.formats import CompressedTensorsFormat`."""

from coldpress.installed import installed_names

__getattr__, __dir__ = installed_names(__name__, "formats")
