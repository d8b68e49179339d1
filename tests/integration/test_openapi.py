"""The served description against the serving process: every route fuzzed, every answer as described, never a 500."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings

from engram_contract.policy import Limits
from engram_sidecar.openapi import openapi_document
from tests.harness import Http, SidecarThread

EXAMPLES = 60  # of each operation, beside the cases that its schema names

REFUSED = ["400", "404", "412", "413", "415", "422"]
# 404 and 412 answer well-formed requests. What a schema cannot say: an id, a user and a name have to belong together,
# and an idempotency key to one request (422); a cursor has to come from a page and an integer within any value has to
# fit 64 bits (400).
TAKEN = ["2xx", "3xx", "404", "412"]
MORE = {
    **dict.fromkeys(("list", "search", "audit"), ("400",)),
    **dict.fromkeys(("create", "putItem", "put", "patch", "patchItem", "batch"), ("400", "422")),
    **dict.fromkeys(("delete", "deleteItem"), ("422",)),
    "health": ("503",),  # a test run may well use all of a CPU
}
schema = schemathesis.openapi.from_dict(
    openapi_document(Limits()),
    config=schemathesis.Config.from_dict(
        {
            "checks": {
                "positive_data_acceptance": {"expected-statuses": TAKEN},
                "negative_data_rejection": {"expected-statuses": REFUSED},
            },
            "operations": [
                {
                    "include-operation-id": operation_id,
                    "checks": {"positive_data_acceptance": {"expected-statuses": [*TAKEN, *more]}},
                }
                for operation_id, more in MORE.items()
            ],
        }
    ),
)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: schemathesis.Case[Any], sidecar: SidecarThread) -> None:
    case.call_and_validate(base_url=f"http://127.0.0.1:{sidecar.ports.http_port}")


def test_the_description_is_served_and_speaks_of_every_route(http: Http) -> None:
    described = http("GET", "/openapi.json").json
    assert described == openapi_document(Limits())
    for path, methods in described["paths"].items():
        for method in ("GET", "PUT", "POST", "PATCH", "DELETE"):
            answer = http(method, path.replace("{id}", "x"), None if method in {"GET", "DELETE"} else {})
            assert (answer.status == 405) == (method.lower() not in methods), (method, path)
