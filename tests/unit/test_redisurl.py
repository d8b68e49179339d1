"""The URL of a Redis: what each form says, and that no other is taken."""

import re

import pytest

from engram_contract.redisurl import PATTERN, Kind, RedisLogin, RedisPlace

SAID = [
    ("redis://cache", RedisPlace(Kind.SERVER, (("cache", 6379),), is_encrypted=False)),
    ("redis://cache:1/2", RedisPlace(Kind.SERVER, (("cache", 1),), is_encrypted=False, database=2)),
    ("rediss://cache.home:6380", RedisPlace(Kind.SERVER, (("cache.home", 6380),), is_encrypted=True)),
    ("redis://[::1]", RedisPlace(Kind.SERVER, (("::1", 6379),), is_encrypted=False)),
    ("redis+sentinel://a/main", RedisPlace(Kind.SENTINEL, (("a", 26379),), is_encrypted=False, name="main")),
    (
        "rediss+sentinel://a:1,[fe80::2]:2,c/my-1.x",
        RedisPlace(Kind.SENTINEL, (("a", 1), ("fe80::2", 2), ("c", 26379)), is_encrypted=True, name="my-1.x"),
    ),
    ("redis+sentinel://a/7", RedisPlace(Kind.SENTINEL, (("a", 26379),), is_encrypted=False, name="7")),
    ("redis+cluster://a", RedisPlace(Kind.CLUSTER, (("a", 6379),), is_encrypted=False)),
    ("rediss+cluster://a:7000,b", RedisPlace(Kind.CLUSTER, (("a", 7000), ("b", 6379)), is_encrypted=True)),
]
LAX = [  # what only a login's own URL may have
    ("redis://cache/", RedisPlace(Kind.SERVER, (("cache", 6379),), is_encrypted=False)),
    ("redis+cluster://a/", RedisPlace(Kind.CLUSTER, (("a", 6379),), is_encrypted=False)),
    ("redis://me:hush@cache/1", RedisPlace(Kind.SERVER, (("cache", 6379),), is_encrypted=False, database=1)),
    (
        "redis+sentinel://me:hush@a,b/x",
        RedisPlace(Kind.SENTINEL, (("a", 26379), ("b", 26379)), is_encrypted=False, name="x"),
    ),
]
REFUSED = [
    "", "hush", "http://hush:6379", "unix:///hush", "redis://", "redis:///1", "redis://hush:port", "redis://hush:0",
    "redis://hush:65536", "redis://hush/first", "redis://hush/1/2", "redis://hush/1234", "redis://hush?ssl=none",
    "redis://hush#a", "redis://hush,b", "redis://::1", "redis://[hush]", "redis://hush\n", "redis://ü", "redis:hush",
    "redis+sentinel://hush", "redis+sentinel://hush/", "redis+sentinel://hush/a/1", "redis+sentinel://,hush/a",
    "redis+sentinel://hush,/a", "redis+sentinel://hush/ä", "redis+cluster://hush/1", "redis+cluster://hush,",
    "redis+cluster://hush;b", "redis+other://hush", "sentinel://hush/a", "redis+sentinel+cluster://hush/a",
]  # fmt: skip


@pytest.mark.parametrize(("url", "said"), SAID + LAX)
def test_a_url_says_where_a_redis_is(url: str, said: RedisPlace) -> None:
    assert RedisPlace.from_url(url) == said


@pytest.mark.parametrize("url", REFUSED)
def test_another_form_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not redis://host") as refused:
        RedisPlace.from_url(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", [each for each, _ in SAID + LAX] + REFUSED)
def test_the_pattern_of_resources_takes_the_forms_without_a_login_and_leaves_the_range_of_ports_alone(url: str) -> None:
    is_taken = bool(re.fullmatch(PATTERN, url))
    assert is_taken == (url in {each for each, _ in SAID} or url in {"redis://hush:0", "redis://hush:65536"})


def test_a_login_is_read_from_its_url_and_its_repr_shows_no_password() -> None:
    login = RedisLogin.from_url("rediss+sentinel://us%40er:h%3Au%2Fsh@a:1,b/main")
    assert (login.user, login.password, login.url) == ("us@er", "h:u/sh", "rediss+sentinel://a:1,b/main")
    assert login.place == RedisPlace.from_url(login.url)
    assert RedisLogin.from_url("redis://:hush@a").user == "default"
    assert "hush" not in repr(RedisLogin.from_url("redis://:hush@a"))
    for url in ("redis://a", "redis://user@a", "redis://user:@a", "http://user:hush@a"):
        with pytest.raises(ValueError, match=r"has no user|is not redis") as refused:
            RedisLogin.from_url(url)
        assert "hush" not in str(refused.value)
