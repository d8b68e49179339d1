"""The JSON patch that brings a CA bundle into a webhook configuration, and touches nothing else there."""

import base64
from collections.abc import Mapping
from typing import Any


def plan_publication(config: Mapping[str, Any], bundle: bytes) -> list[dict[str, Any]]:
    """One `test` and one `add` per webhook whose caBundle differs; empty if all are right.

    The test is of the webhook's name: a list that somebody reordered since it was read is left alone until the next
    round. Not a server-side apply, which would have to own the list's other fields or lose to Helm over them.
    """
    wanted = base64.b64encode(bundle).decode()
    operations: list[dict[str, Any]] = []
    for index, webhook in enumerate(config.get("webhooks") or ()):
        if (webhook.get("clientConfig") or {}).get("caBundle") != wanted:
            place = f"/webhooks/{index}"
            operations += [
                {"op": "test", "path": f"{place}/name", "value": webhook["name"]},
                {"op": "add", "path": f"{place}/clientConfig/caBundle", "value": wanted},
            ]
    return operations
