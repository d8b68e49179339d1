"""What the door to the API server makes of its own answers."""

import pytest

from engram_operator.clients.kube import NAMESPACES
from engram_operator.errors import ApiRefused
from tests.operator_stage import Store


async def test_what_is_not_there_is_found_as_nothing_and_any_other_failure_is_raised() -> None:
    store = Store()
    stored = store.put(NAMESPACES, {"metadata": {"name": "ns"}})
    assert await store.find(NAMESPACES, None, "ns") == stored
    assert await store.find(NAMESPACES, None, "other") is None
    store.fault = ApiRefused("get ns: 403")
    with pytest.raises(ApiRefused):
        await store.find(NAMESPACES, None, "ns")
