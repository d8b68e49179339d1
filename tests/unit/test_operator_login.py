"""The rotation of a tenant's password: at every moment a sidecar, old file or new, has one that its role takes."""

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.credentials import CacheLogin, Credentials
from engram_contract.kinds import MAX_INT64
from engram_contract.names import CREDENTIALS_FILE, ROTATE_ANNOTATION, STAGED_ANNOTATION
from engram_operator.manifests.tenant import Stored, read_tenant_secret
from engram_operator.plan.login import Asked, Login, cache_passwords, left_s, placed, plan_login
from engram_operator.plan.roles import mark_of

ROLE = "t_x"
ONE = Stored(Credentials(ROLE, ("old",), generation=1))
BOTH = Stored(Credentials(ROLE, ("old", "new"), generation=2), "again", 1000.0)
OLD, NEW = mark_of(ROLE, "old"), mark_of(ROLE, "new")


@pytest.mark.parametrize(
    ("stored", "request_", "now_s", "marks", "passwords", "role_has"),
    [
        (None, "", 0, [], ("fresh",), "fresh"),
        (ONE, "", 0, [OLD], ("old",), "old"),
        (replace(ONE, request="again"), "again", 0, [OLD], ("old",), "old"),
        (ONE, "again", 0, [OLD], ("old", "fresh"), "old"),
        (BOTH, "again", 1299, [OLD, OLD], ("old", "new"), "old"),
        (BOTH, "again", 1300, [OLD, OLD], ("old", "new"), "new"),
        (BOTH, "again", 0, [OLD, NEW], ("old", "new"), "new"),
        (BOTH, "again", 1300, [NEW, NEW], ("new",), "new"),
        (BOTH, "another", 1001, [OLD], ("old", "new"), "old"),
        (replace(BOTH, staged_s=None), "again", 9999, [OLD], ("old", "new"), "old"),
        (replace(BOTH, staged_s=1e11), "again", 9999, [OLD], ("old", "new"), "old"),
        (replace(BOTH, staged_s=1e11), "again", 9999, [OLD, NEW], ("old", "new"), "new"),
        (replace(ONE, credentials=Credentials("t_y", ("p",))), "", 0, [], ("fresh",), "fresh"),
    ],
)
def test_the_next_state_of_a_login(
    stored: Stored | None, request_: str, now_s: float, marks: list[str], passwords: tuple[str, ...], role_has: str
) -> None:
    login = plan_login(ROLE, stored, Asked(request_, "fresh", now_s), marks)
    assert (login.stored.credentials.passwords, login.password) == (passwords, role_has)
    assert login.mark == mark_of(ROLE, role_has)


def test_each_change_is_a_generation_and_the_last_request_is_remembered() -> None:
    asked = Asked("again", "new", 1000.0)
    staged = plan_login(ROLE, ONE, asked, [OLD])
    assert (staged.stored.credentials.generation, staged.stored.request) == (2, "again")
    assert left_s(staged, asked) == 300
    ended = plan_login(ROLE, staged.stored, replace(asked, now_s=1300), [NEW])
    assert (ended.stored.credentials.generation, ended.stored.request, ended.stored.staged_s) == (3, "again", None)
    assert plan_login(ROLE, ended.stored, asked, [NEW]) == ended
    assert left_s(ended, asked) is None


@pytest.mark.parametrize(
    "staged", ["inf", "-inf", "nan", "1e999", "-5", "1_000", "٣", "", "soon", "9" * 400, "99999999999"]
)
def test_a_forged_time_of_staging_costs_one_grace_and_is_mended(staged: str) -> None:
    """It is no reason to make a new password, nor to wait for ever."""
    annotations = {STAGED_ANNOTATION: staged, ROTATE_ANNOTATION: "again"}
    data = {CREDENTIALS_FILE: base64.b64encode(BOTH.credentials.to_json().encode()).decode()}
    stored = read_tenant_secret({"metadata": {"annotations": annotations}, "data": data})
    assert stored is not None
    asked = Asked("again", "fresh", 1_800_000_000.7)
    login = plan_login(ROLE, stored, asked, [OLD])
    assert login == Login(replace(BOTH, staged_s=1_800_000_000.0), "old")
    assert left_s(login, asked) == pytest.approx(299.3)
    later = replace(asked, now_s=asked.now_s + 300)
    assert plan_login(ROLE, login.stored, later, [OLD]) == replace(login, password="new")  # noqa: S106  of a test


def test_a_time_of_staging_without_a_second_password_is_none() -> None:
    login = plan_login(ROLE, replace(ONE, staged_s=5.0), Asked("", "fresh", 1000.0), [OLD])
    assert login.stored == ONE
    assert left_s(login, Asked("", "fresh", 1000.0)) is None


def test_after_the_last_generation_comes_the_first() -> None:
    """Only a forger writes the last; the files hold no greater one, and a tenant would be stuck with it."""
    last = replace(ONE, credentials=replace(ONE.credentials, generation=MAX_INT64))
    staged = plan_login(ROLE, last, Asked("again", "new", 0.0), [OLD]).stored.credentials
    assert staged.generation == 1
    assert Credentials.from_json(staged.to_json()) == staged
    kept = plan_login(ROLE, last, Asked("", "", 0.0), [OLD])
    assert placed(kept, last, "PEM", None).stored.credentials.generation == 1


def test_another_certificate_or_cache_is_a_generation_of_its_own() -> None:
    kept = placed(plan_login(ROLE, ONE, Asked("", "", 0), [OLD]), ONE, "", None)
    assert kept.stored == ONE
    cache = CacheLogin("redis://c:1", ROLE, cache_passwords(("old",)))
    for ca, user in (("PEM", None), ("", cache)):
        changed = placed(plan_login(ROLE, ONE, Asked("", "", 0), [OLD]), ONE, ca, user).stored.credentials
        assert (changed.generation, changed.ca, changed.cache) == (2, ca, user)
    rotated = placed(plan_login(ROLE, ONE, Asked("again", "new", 0), [OLD]), ONE, "PEM", cache).stored.credentials
    assert rotated.generation == 2


def test_the_caches_passwords_do_not_tell_the_databases() -> None:
    assert cache_passwords(("old", "new"))[0] == cache_passwords(("old",))[0] != "old"


@given(st.lists(st.sampled_from(["turn one", "turn all", "time", "crash before the Secret", "ask"]), max_size=30))
def test_a_sidecar_with_this_file_or_the_one_before_always_has_a_password_that_works(events: list[str]) -> None:
    stored, before, roles, now_s, asked = ONE, ONE, ["old", "old"], 0.0, ""
    for fresh, event in enumerate(events):
        asked = str(fresh) if event == "ask" else asked
        if event == "time":
            now_s += 301
            before = stored  # every kubelet has brought the file by now
        marks = [mark_of(ROLE, each) for each in roles]
        login = plan_login(ROLE, stored, Asked(asked, f"p{fresh}", now_s), marks)
        if event.startswith("turn"):
            roles = [login.password, login.password if event == "turn all" else roles[1]]
        if event != "crash before the Secret" and login.stored != stored:
            before, stored = (stored if before == stored else before), login.stored
        for file in (before, stored):
            assert set(roles) <= set(file.credentials.passwords), (roles, file)
