"""Every installed modifier, by name: `from coldpress.modifiers import GPTQModifier`."""

from coldpress.installed import installed_names

__getattr__, __dir__ = installed_names(__name__, "modifiers")
