"""Every installed pipeline, by name: `from coldpress.pipelines import Sequential`."""

from coldpress.installed import installed_names

__getattr__, __dir__ = installed_names(__name__, "pipelines")
