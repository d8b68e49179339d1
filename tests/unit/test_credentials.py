"""The files of a tenant's Secret: JSON gives them back, a fault names the member and never what stands there."""

import base64
import json
from collections.abc import Callable

import pytest

from engram_contract.credentials import BadCredentials, CacheLogin, Credentials, DataKey, Keyring

KEY = base64.b64encode(bytes(32)).decode()
LOGIN = Credentials(
    "t_x",
    ("hush", "older"),
    ca="PEM",
    generation=3,
    cache=CacheLogin("rediss://cache:6379", "t_x", ("quiet",), "PEM"),
)
RING = Keyring(2, (DataKey(1, KEY), DataKey(2, KEY)), KEY)


def test_json_gives_credentials_back() -> None:
    assert Credentials.from_json(LOGIN.to_json()) == LOGIN
    assert Credentials.from_json(Credentials("t_x", ("p",)).to_json()) == Credentials("t_x", ("p",))
    assert Keyring.from_json(RING.to_json()) == RING


def test_a_repr_shows_no_secret() -> None:
    assert not any(secret in repr(LOGIN) + repr(RING) for secret in ("hush", "older", "quiet", KEY))


@pytest.mark.parametrize(
    ("read", "whole", "change", "path"),
    [
        (Credentials.from_json, LOGIN, {"passwords": "hush"}, "passwords"),
        (Credentials.from_json, LOGIN, {"passwords": []}, "passwords"),
        (Credentials.from_json, LOGIN, {"passwords": ["hush"] * 3}, "passwords"),
        (Credentials.from_json, LOGIN, {"passwords": ["hush", {"hush": 1}]}, "passwords[1]"),
        (Credentials.from_json, LOGIN, {"role": None}, "role"),
        (Credentials.from_json, LOGIN, {"cache": {"url": "hush"}}, "cache.user"),
        (Keyring.from_json, RING, {"current": 3}, "current"),
        (Keyring.from_json, RING, {"index": "hush"}, "index"),
        (Keyring.from_json, RING, {"keys": [{"version": 1, "key": "hush"}]}, "keys[0].key"),
        (Keyring.from_json, RING, {"keys": [{"version": 1, "key": KEY}] * 2}, "keys[1].version"),
    ],
)
def test_a_fault_names_the_member_and_not_its_value(
    read: Callable[[str], object], whole: Credentials | Keyring, change: dict[str, object], path: str
) -> None:
    with pytest.raises(BadCredentials) as bad:
        read(json.dumps(json.loads(whole.to_json()) | change))
    assert bad.value.path == path
    assert "hush" not in str(bad.value)
    assert bad.value.__cause__ is None
    assert bad.value.__context__ is None


@pytest.mark.parametrize("text", ["", "hush", "[]", '{"role": "hush"}', '{"format": 2}'])
def test_a_text_of_another_form_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(BadCredentials) as bad:
        Credentials.from_json(text)
    assert "hush" not in str(bad.value)
