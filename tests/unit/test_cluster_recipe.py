"""The test cluster's images: each base has a name of its own recipe, so a changed recipe is never an old image."""

from dataclasses import replace

import pytest

from tests.cluster import recipe


@pytest.mark.parametrize("changed", [replace(recipe.NEWER, suite="sid"), replace(recipe.NEWER, packages=())])
def test_a_tree_of_another_recipe_has_another_tag(changed: recipe.Tree) -> None:
    assert changed.tag != recipe.NEWER.tag


def test_the_bases_are_three_images() -> None:
    assert len({recipe.base_tag(), recipe.postgres_base_tag(), recipe.NEWER.tag}) == 3


@pytest.mark.parametrize("steps", [recipe.POSTGRES, recipe.REDIS])
def test_what_is_made_from_the_newer_debian_begins_with_it(steps: str) -> None:
    assert recipe.on_newer(steps).startswith(f"FROM {recipe.NEWER.tag}\n")


@pytest.mark.parametrize("steps", [recipe.POSTGRES, recipe.REDIS])
def test_the_user_has_the_official_number_before_a_package_can_choose_another(steps: str) -> None:
    assert 0 < steps.index("useradd -u 999 -g 999") < steps.index("apt-get install")
