"""The public names of users and of plugin authors: each stands in three places, and can be imported."""

import ast
import inspect
from importlib import import_module

import pytest

import coldpress
import coldpress.plugin

MODULES = [coldpress, coldpress.plugin]
NAMES = [(module, name) for module in MODULES for name in module.__all__]


def for_type_checkers(module):
    """Name to module, from the imports that only type checkers see."""
    blocks = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If)]
    (block,) = [node for node in blocks if isinstance(node.test, ast.Name)]  # and not `not TYPE_CHECKING`
    return {alias.name: node.module for node in block.body for alias in node.names}


@pytest.mark.parametrize("module", MODULES)
def test_type_checkers_see_the_names_that_are_offered(module):
    assert sorted(for_type_checkers(module)) == sorted(module.__all__) == sorted(dir(module))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_is_what_type_checkers_take_it_for(module, name):
    assert getattr(module, name) is getattr(import_module(for_type_checkers(module)[name]), name)


@pytest.mark.parametrize("module", MODULES)
def test_another_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'onshot'"):
        _ = module.onshot


def test_a_name_that_users_and_authors_have_is_one():
    both = set(coldpress.__all__) & set(coldpress.plugin.__all__)

    assert all(getattr(coldpress, name) is getattr(coldpress.plugin, name) for name in both)
