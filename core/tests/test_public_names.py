"""The public names: each stands in three places, and can be imported."""

import ast
import inspect

import pytest

import coldpress


def homes():
    return {name: home for home, names in coldpress._HOMES.items() for name in names}


def for_type_checkers():
    """Name to module, from the imports that only type checkers see."""
    (block,) = [node for node in ast.parse(inspect.getsource(coldpress)).body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_the_three_lists_agree():
    assert sorted(homes()) == sorted(coldpress.__all__)
    assert for_type_checkers() == {name: f"coldpress.{home}" for name, home in homes().items()}


@pytest.mark.parametrize("name", coldpress.__all__)
def test_every_name_can_be_imported(name):
    assert getattr(coldpress, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'onshot'"):
        _ = coldpress.onshot


def test_dir_lists_them():
    assert set(coldpress.__all__) <= set(dir(coldpress))
