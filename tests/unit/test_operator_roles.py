"""The rotation of a cluster's own passwords, and the DSNs of External shards."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engram_operator.clients.dsn import admin_of
from engram_operator.clients.roles import scram_verifier
from engram_operator.errors import BadDsn
from engram_operator.manifests.credentials import PLACEHOLDER
from engram_operator.plan.members import Member
from engram_operator.plan.observed import Database, Silence
from engram_operator.plan.roles import (
    all_have_roles,
    has_roles,
    is_rotation_due,
    is_rotation_over,
    marks_of,
    passwords_of,
    plan_roles,
)
from engram_operator.plan.steps import ReloadFiles, RetireRoles, TurnRoles, Wait

OLD = replace(PLACEHOLDER, superuser="s1", replication="r1", rewind="w1")
NEW = replace(OLD, letter="b", superuser="s2", superuser_previous="s1", replication="r2", rewind="w2", rotation="x")
POD = Member("mem-s0-0", "u", 0, "10.0.0.1", "r", is_ready=True, is_ending=False, unready_since_s=None, trouble="")


def told(marks: dict[str, str], *senders: str) -> Database:
    return Database(
        "18", "1", is_current=True, has_vector=True, size_bytes=1, owned_slots=0, marks=marks, senders=senders
    )


def steps(database: Database, *, is_file_new: bool) -> list[type]:
    return [type(step) for step in plan_roles("s0", database, NEW, [POD], is_file_new=is_file_new)]


def test_a_rotation_goes_its_way_step_by_step() -> None:
    both = marks_of(OLD) | marks_of(NEW)
    assert steps(told(marks_of(OLD), "replicator_a"), is_file_new=False) == [TurnRoles]
    assert steps(told(both, "replicator_a"), is_file_new=False) == []  # Patroni's file comes first
    assert steps(told(both, "replicator_a"), is_file_new=True) == [ReloadFiles, Wait]
    assert steps(told(both, "replicator_a", "replicator_b"), is_file_new=True) == [ReloadFiles, Wait]
    assert steps(told(both, "replicator_b"), is_file_new=True) == [RetireRoles]
    assert steps(told(marks_of(NEW), "replicator_b"), is_file_new=True) == []


def test_the_old_password_goes_when_every_shard_has_the_new_roles_alone() -> None:
    done, half = told(marks_of(NEW)), told(marks_of(OLD) | marks_of(NEW))
    assert is_rotation_over({"s0": done, "s1": done}, ["s0", "s1"], NEW)
    assert not is_rotation_over({"s0": done, "s1": half}, ["s0", "s1"], NEW)
    assert not is_rotation_over({"s0": done, "s1": Silence("away")}, ["s0", "s1"], NEW)
    assert not is_rotation_over({"s0": done}, ["s0", "s1"], NEW)
    assert not is_rotation_over({"s0": told(marks_of(OLD))}, ["s0"], OLD)  # there is nothing to end


def test_a_silent_shard_keeps_patronis_file_as_it_is() -> None:
    assert all_have_roles({"s0": told(marks_of(NEW))}, ["s0"], NEW)
    assert not all_have_roles({"s0": told(marks_of(NEW)), "s1": Silence("away")}, ["s0", "s1"], NEW)
    assert not has_roles(told(marks_of(OLD)), NEW)


@pytest.mark.parametrize(
    ("credentials", "asked", "is_due"),
    [
        (OLD, "", False),
        (OLD, "x", True),
        (NEW, "x", False),
        (NEW, "y", False),
        (replace(NEW, superuser_previous=""), "y", True),
    ],
)
def test_a_request_is_carried_out_once_and_one_after_the_other(credentials: object, asked: str, is_due: bool) -> None:
    assert isinstance(credentials, type(OLD))
    assert is_rotation_due(credentials, asked) is is_due


def test_the_superuser_comes_last_because_its_mark_is_the_sign_that_all_is_done() -> None:
    assert list(passwords_of(NEW)) == ["replicator_b", "rewinder_b", "postgres"]


def test_a_verifier_is_what_a_server_would_make_of_the_password() -> None:
    kind, rounds, salt, keys = split(scram_verifier("pencil", b"0123456789abcdef"))
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", salt, rounds)
    client = hmac.digest(salted, b"Client Key", "sha256")
    assert kind == "SCRAM-SHA-256"
    assert keys == [hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")]


def split(verifier: str) -> tuple[str, int, bytes, list[bytes]]:
    kind, rounds, keys = verifier.split("$")
    count, _, salt = rounds.partition(":")
    return kind, int(count), base64.b64decode(salt), [base64.b64decode(each) for each in keys.split(":")]


def test_a_dsn_is_a_login() -> None:
    admin = admin_of("postgresql://me:p%40ss@db.example:5433/app?sslmode=require\n")
    assert (admin.host, admin.port, admin.user, admin.password) == ("db.example", 5433, "me", "p@ss")
    assert admin.sslmode == "require"
    assert "p@ss" not in repr(admin)
    assert admin_of("postgres://me:x@db").port == 5432


def bad() -> Iterator[tuple[str, str]]:
    yield "", "begin with"
    yield "mysql://me:secret@db/x", "begin with"
    yield "postgresql://db/x", "name user, password and host"
    yield "postgresql://me@db/x", "name user, password and host"
    yield "postgresql://me:secret@db:99999/x", "no URL"
    yield "postgresql://me:secret@db/?sslmode=verify-full", "sslmode must be one of"
    yield "postgresql://me:secret@db/?target_session_attrs=any", "target_session_attrs"


@pytest.mark.parametrize(("dsn", "said"), list(bad()))
def test_a_bad_dsn_is_refused_with_its_reason_and_without_its_password(dsn: str, said: str) -> None:
    with pytest.raises(BadDsn, match=said) as caught:
        admin_of(dsn)
    assert "secret" not in str(caught.value)
