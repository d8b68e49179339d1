"""Many writers at once: no update is lost, no batch is torn, nobody waits for ever."""

import threading
import uuid
from collections.abc import Callable

from tests.harness import Http, SidecarThread

WRITERS = 8
ROUNDS = 25


def together(port: int, work: Callable[[Http, int], None], workers: int = WRITERS) -> None:
    """Runs the work on several connections at once and raises what went wrong in any."""
    failures: list[BaseException] = []

    def one(number: int) -> None:
        http = Http(port)
        try:
            work(http, number)
        except BaseException as error:  # noqa: BLE001  raised below, in the thread of the test
            failures.append(error)
        finally:
            http.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_compare_and_set_loses_no_update(sidecar: SidecarThread, http: Http) -> None:
    key = uuid.uuid4().hex
    http("PUT", "/v1/items", {"value": 0}, key=key)

    def count_up(own: Http, _: int) -> None:
        for _ in range(ROUNDS):
            while True:
                seen = own("GET", "/v1/items", key=key)
                body = {"value": seen.json["value"] + 1}
                answer = own("PUT", "/v1/items", body, headers={"If-Match": seen.headers["etag"]}, key=key)
                if answer.status == 200:
                    break
                assert answer.status == 412

    together(sidecar.ports.http_port, count_up)
    assert http("GET", "/v1/items", key=key).json["value"] == WRITERS * ROUNDS


def test_patches_of_different_members_all_stay(sidecar: SidecarThread, http: Http) -> None:
    key = uuid.uuid4().hex
    http("PUT", "/v1/items", {"value": {}}, key=key)

    def patch(own: Http, number: int) -> None:
        for step in range(ROUNDS):
            assert own("PATCH", "/v1/items", {"value": {f"{number}-{step}": True}}, key=key).status == 200

    together(sidecar.ports.http_port, patch)
    read = http("GET", "/v1/items", key=key).json
    assert len(read["value"]) == WRITERS * ROUNDS
    assert read["version"] == 1 + WRITERS * ROUNDS


def test_one_of_many_creators_creates(sidecar: SidecarThread) -> None:
    keys = [uuid.uuid4().hex for _ in range(ROUNDS)]
    created: list[str] = []

    def create(own: Http, _: int) -> None:
        for key in keys:
            answer = own("PUT", "/v1/items", {}, headers={"If-None-Match": "*"}, key=key)
            assert answer.status in {201, 412}
            if answer.status == 201:
                created.append(key)

    together(sidecar.ports.http_port, create)
    assert sorted(created) == sorted(keys)


def test_batches_over_the_same_memories_in_any_order_never_tear(sidecar: SidecarThread, http: Http) -> None:
    space = uuid.uuid4().hex
    keys = [str(number) for number in range(12)]
    shards = {key: http("PUT", "/v1/items", {}, namespace=space, key=key).json["shard"] for key in keys}

    def write(own: Http, number: int) -> None:
        for step in range(ROUNDS):
            order = keys[::-1] if (number + step) % 2 else keys
            value = f"{number}-{step}"
            operations = [{"op": "put", "namespace": [space], "key": key, "memory": {"value": value}} for key in order]
            results = own("POST", "/v1/batch", {"operations": operations}).json["results"]
            assert {result["status"] for result in results} == {200}

    together(sidecar.ports.http_port, write)
    for shard in set(shards.values()):
        seen = {
            http("GET", "/v1/items", namespace=space, key=key).json["value"] for key in keys if shards[key] == shard
        }
        assert len(seen) == 1, "a shard shows two batches at once"


def test_new_memories_in_opposite_orders_do_not_block_each_other(sidecar: SidecarThread) -> None:
    """Rows that do not exist yet cannot be locked beforehand: the store breaks the tie and the batch is run again."""
    spaces = [uuid.uuid4().hex for _ in range(ROUNDS)]
    keys = [str(number) for number in range(12)]

    def write(own: Http, number: int) -> None:
        for space in spaces:
            order = keys[::-1] if number % 2 else keys
            operations = [{"op": "put", "namespace": [space], "key": key, "memory": {}} for key in order]
            results = own("POST", "/v1/batch", {"operations": operations}).json["results"]
            assert {result["status"] for result in results} <= {200, 201}, results

    together(sidecar.ports.http_port, write, 4)
