"""Which migrations a database gets: all that it lacks in order, removals only when asked, nothing over a conflict."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_operator.clients.postgres import available_migrations
from engram_operator.plan.migrations import Migration, MigrationConflict, in_order, plan_migrations

FILES = {
    "0001_pre_initial.sql": "CREATE 1",
    "0002_pre_more.sql": "CREATE 2",
    "0003_post_less.sql": "DROP 3",
    "0004_pre_new.sql": "CREATE 4",
    "0005_post_last.sql": "DROP 5",
}
ALL = in_order(FILES)


def applied(*numbers: int) -> dict[int, str]:
    return {migration.number: migration.checksum for migration in ALL if migration.number in numbers}


def numbers_of(migrations: Sequence[Migration]) -> list[int]:
    return [migration.number for migration in migrations]


def test_a_file_tells_number_name_and_kind() -> None:
    text = "SELECT '\u00e9';\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    made = Migration.from_file("0042_post_drop_old_9.sql", text)
    assert made == Migration(42, "0042_post_drop_old_9", is_post=True, sql=text, checksum=checksum)
    assert not Migration.from_file("0001_pre_a.sql", "").is_post


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0001_pre_a",
        "0001_pre_a.SQL",
        "0001_pre_a.sql~",
        "0001_pre_a.sql\n",
        "1_pre_a.sql",
        "00001_pre_a.sql",
        "0001_a.sql",
        "0001_mid_a.sql",
        "0001_PRE_a.sql",
        "0001-pre-a.sql",
        "0001_pre_.sql",
        "0001_pre_A.sql",
        "0001_pre_a b.sql",
        "0001_pre_../a.sql",
        "x0001_pre_a.sql",
        "\u0660\u0660\u0660\u0661_pre_a.sql",
        "README.md",
    ],
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="NNNN_pre_name"):
        Migration.from_file(name, "")
    with pytest.raises(ValueError, match="NNNN_pre_name"):
        in_order({**FILES, name: ""})


@settings(max_examples=20)
@given(st.permutations(list(FILES.items())))
def test_the_order_is_that_of_the_numbers(files: list[tuple[str, str]]) -> None:
    assert in_order(dict(files)) == ALL
    assert numbers_of(ALL) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["0002_pre_a.sql"], "[2]"),
        (["0000_pre_a.sql", "0001_pre_b.sql"], "[0, 1]"),
        (["0001_pre_a.sql", "0003_pre_b.sql"], "[1, 3]"),
        (["0001_pre_a.sql", "0001_pre_b.sql"], "[1, 1]"),
        (["0001_pre_a.sql", "0002_pre_b.sql", "0002_post_b.sql"], "[1, 2, 2]"),
    ],
)
def test_gaps_and_doubles_are_refused(names: list[str], found: str) -> None:
    with pytest.raises(ValueError, match="without gaps or doubles") as raised:
        in_order(dict.fromkeys(names, ""))
    assert str(raised.value).endswith(f"found {found}")


def test_an_empty_folder_has_no_migrations() -> None:
    assert in_order({}) == ()
    assert plan_migrations((), {}, with_post=True) == ()


@pytest.mark.parametrize(
    ("done", "with_post", "plan"),
    [
        ((), True, [1, 2, 3, 4, 5]),
        ((), False, [1, 2]),
        ((1,), True, [2, 3, 4, 5]),
        ((1,), False, [2]),
        ((1, 2), False, []),
        ((1, 2), True, [3, 4, 5]),
        ((1, 2, 3), False, [4]),
        ((1, 2, 3), True, [4, 5]),
        ((1, 2, 3, 4, 5), False, []),
        ((1, 2, 3, 4, 5), True, []),
    ],
)
def test_the_plan_is_what_is_missing_up_to_the_first_removal(
    done: tuple[int, ...], with_post: bool, plan: list[int]
) -> None:
    assert numbers_of(plan_migrations(ALL, applied(*done), with_post=with_post)) == plan
    assert numbers_of(plan_migrations(reversed(ALL), applied(*done), with_post=with_post)) == plan


@pytest.mark.parametrize("with_post", [True, False])
def test_a_migration_with_another_text_is_a_conflict(with_post: bool) -> None:
    with pytest.raises(MigrationConflict, match="0002_pre_more was applied with another text"):
        plan_migrations(ALL, applied(1) | {2: "0" * 64}, with_post=with_post)


def test_a_database_of_a_newer_version_is_a_conflict() -> None:
    with pytest.raises(MigrationConflict, match="has migration 6, this version of Engram ends at 5"):
        plan_migrations(ALL, applied(1, 2, 3, 4, 5) | {6: ALL[0].checksum}, with_post=True)
    with pytest.raises(MigrationConflict, match="ends at 0"):
        plan_migrations((), applied(1), with_post=True)


def test_a_migration_that_changes_only_in_its_name_is_the_same() -> None:
    renamed = in_order({"0001_pre_first.sql": "CREATE 1"})
    assert plan_migrations(renamed, applied(1), with_post=True) == ()


def test_the_migrations_of_this_version_are_in_order_and_the_first_adds() -> None:
    shipped = available_migrations()
    assert numbers_of(shipped) == list(range(1, len(shipped) + 1))
    assert not shipped[0].is_post
    assert plan_migrations(shipped, {}, with_post=True) == shipped
