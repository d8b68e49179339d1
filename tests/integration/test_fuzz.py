"""Every route with what no schema would send: no 500, no hang, always a document of ours, and nothing half-written."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import Http, SidecarThread

ROUTES = [
    ("POST", "/v1/memories"),
    ("GET", "/v1/memories"),
    ("PUT", "/v1/memories/0000-01a1fd5f-0000-7000-8000-000000000000"),
    ("PATCH", "/v1/memories/0000-01a1fd5f-0000-7000-8000-000000000000"),
    ("DELETE", "/v1/memories/0000-01a1fd5f-0000-7000-8000-000000000000"),
    ("GET", "/v1/items"),
    ("PUT", "/v1/items"),
    ("PATCH", "/v1/items"),
    ("DELETE", "/v1/items"),
    ("POST", "/v1/search"),
    ("POST", "/v1/batch"),
    ("GET", "/v1/shards"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/metrics"),
    ("GET", "/v1/cache"),
    ("DELETE", "/v1/cache"),
    ("DELETE", "/v1/cache/0000-01a1fd5f-0000-7000-8000-000000000000"),
    ("GET", "/v1/audit"),
]
WORDS = st.sampled_from(
    """
    content value type user agent session namespace key importance ttl_s query filter limit operations op memory id
    create put get patch delete if_match if_none_match cursor count before created eq ne gt in
    """.split()  # noqa: SIM905  read as prose
)
TEXT = st.text(max_size=12) | WORDS | st.sampled_from(["\x00", "\ud800", "𝄞", "'", '"', "\\", "%00", "é"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | TEXT, inner, max_size=5),
    max_leaves=12,
)
BODIES = st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode(errors="surrogatepass"))
OPERATIONS = st.fixed_dictionaries(
    {"op": st.sampled_from(["create", "put", "get", "patch", "delete"]) | ANYTHING},
    optional={"key": ANYTHING, "id": ANYTHING, "memory": ANYTHING, "namespace": ANYTHING, "if_match": TEXT},
)
BATCHES = st.lists(OPERATIONS, max_size=4).map(
    lambda many: json.dumps({"operations": many}).encode(errors="surrogatepass")
)
RAW = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="# "), max_size=30)
# Control characters in a header are refused by the HTTP parser itself, before there is a request to answer.
TAGS = st.text(st.sampled_from([chr(code) for code in (*range(32, 127), *range(160, 256))]), max_size=12).map(str.strip)


@pytest.fixture(scope="module")
def client(sidecar: SidecarThread) -> Iterator[Http]:
    http_client = Http(sidecar.ports.http_port)
    yield http_client
    http_client.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES | BATCHES, query=RAW, tag=TAGS)
def test_no_request_is_our_failure(client: Http, method: str, path: str, body: bytes, query: str, tag: str) -> None:
    headers: dict[str, Any] = {"If-Match": tag.encode("latin-1")} if tag else {}
    try:
        answer = client(method, f"{path}?{query}", raw=None if method == "GET" else body, headers=headers)
    except http.client.InvalidURL:
        return  # this client does not send it
    assert answer.status < 500, answer
    assert answer.status in {204, 304} or answer.headers["content-type"].startswith("application/"), answer
