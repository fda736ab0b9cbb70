"""What a manifest says of versions, and what it reads for that."""

from importlib.metadata import EntryPoint

from coldpress import registry
from coldpress.report import manifest


class Dist:
    name, version = "acme-method", "1.2"


def offering(package, calls):
    """Entry points of an installation with one plugin, and what was asked of it."""
    entry = EntryPoint("acme", f"{package}:Thing", "coldpress.modifiers")._for(Dist())

    def read(group):
        calls.append(group)
        return [entry] if group == "coldpress.modifiers" else []

    return read


def part(module):
    return type("Thing", (), {"__module__": module})()


def test_the_plugins_of_parts_are_named_and_installations_are_read_once(monkeypatch):
    calls = []
    monkeypatch.setattr(registry, "entry_points", offering("acme_method", calls))

    versions = [manifest._versions([part("acme_method.modifier"), part("coldpress.formats")]) for _ in range(3)]

    assert versions[0]["acme-method"] == "1.2"
    assert versions[1] == versions[2] == versions[0]
    assert len(calls) == len(registry.KINDS)


def test_a_plugin_that_was_installed_since_is_named_too(monkeypatch):
    calls = []
    found = offering("acme_method", calls)
    monkeypatch.setattr(registry, "entry_points", lambda group: found(group) if calls else [])
    assert "acme-method" not in manifest._versions([part("acme_method")])

    calls.append("installed")

    assert manifest._versions([part("acme_method")])["acme-method"] == "1.2"
