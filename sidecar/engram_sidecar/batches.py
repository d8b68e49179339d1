"""The batch document to operations, and outcomes to results in their order. Pure but for the ids, which are given."""

from dataclasses import replace
from typing import Final, Protocol

from engram_contract.policy import Limits
from engram_contract.slots import MemoryId
from engram_sidecar import wire
from engram_sidecar.errors import BadRequest, Flaw, SidecarError, TooLarge, Unprocessable, pointer
from engram_sidecar.etags import write_conditions
from engram_sidecar.idempotency import status_of
from engram_sidecar.problems import to_problem
from engram_sidecar.records import Conditions, Delete, Draft, Get, Operation, Patch, Put, Replay
from engram_sidecar.writes import Outcome

_KINDS: Final = ("create", "put", "get", "patch", "delete")
_ADDRESS: Final = ("id", "user", "namespace", "key")
_MEMBERS: Final = {
    "create": ("memory",),
    "put": (*_ADDRESS, "memory", "if_match", "if_none_match"),
    "get": _ADDRESS,
    "patch": (*_ADDRESS, "memory", "if_match", "if_none_match"),
    "delete": (*_ADDRESS, "if_match", "if_none_match"),
}


class Ids(Protocol):
    """Makes ids."""

    def new_id(self, draft: Draft) -> MemoryId:
        """A new one for a memory without a key."""

    def id_of(self, draft: Draft) -> MemoryId:
        """That of a memory with a key."""


def parse_batch(document: object, limits: Limits, ids: Ids) -> list[Operation]:
    """The operations of a batch. Raises Unprocessable with the place of the first wrong one, TooLarge."""
    if (
        not isinstance(document, dict)
        or set(document) != {"operations"}
        or not isinstance(document["operations"], list)
    ):
        raise Unprocessable(Flaw("", 'must be {"operations": [...]}'))
    operations = document["operations"]
    if len(operations) > limits.batch_operations:
        raise TooLarge("operations in a batch", limits.batch_operations)
    return [_operation(one, f"/operations/{number}", limits, ids) for number, one in enumerate(operations)]


def _operation(document: object, place: str, limits: Limits, ids: Ids) -> Operation:
    if not isinstance(document, dict):
        raise Unprocessable(Flaw(place, "must be an object"))
    kind = document.get("op")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Unprocessable(Flaw(f"{place}/op", f"must be one of {', '.join(_KINDS)}"))
    for member in document:
        if member != "op" and member not in _MEMBERS[kind]:
            raise Unprocessable(Flaw(pointer(place, member), f"is not a member of {kind}"))
    if kind == "create":
        return _create(document, place, limits, ids)
    memory_id, name = _address(document, place, limits, ids)
    if kind == "get":
        return Get(memory_id)
    conditions = _conditions(document, place)
    if kind == "delete":
        return Delete(memory_id, conditions)
    if kind == "patch":
        patch = document.get("memory")
        if not isinstance(patch, dict):
            raise Unprocessable(Flaw(f"{place}/memory", "must be an object: a JSON merge patch"))
        return Patch(memory_id, patch, conditions, f"{place}/memory")
    return Put(memory_id, _whole(document, name, place, limits), conditions)


def _whole(document: dict[str, object], name: Draft | None, place: str, limits: Limits) -> Draft:
    """What a put stores: under an id the body says all, under a name the address has said a part."""
    if name is None:
        return wire.parse_draft(document.get("memory"), limits, f"{place}/memory")
    rest = wire.parse_draft(document.get("memory"), limits, f"{place}/memory", without=("user", "namespace", "key"))
    return replace(rest, user=name.user, namespace=name.namespace, key=name.key)


def _create(document: dict[str, object], place: str, limits: Limits, ids: Ids) -> Put:
    draft = wire.parse_draft(document.get("memory"), limits, f"{place}/memory")
    if draft.key is not None:
        raise Unprocessable(Flaw(f"{place}/memory/key", "a memory with a key is stored by put"))
    return Put(ids.new_id(draft), draft, Conditions(must_be_absent=True))


def _address(document: dict[str, object], place: str, limits: Limits, ids: Ids) -> tuple[MemoryId, Draft | None]:
    """The id, and the name if the memory was addressed by it."""
    if "id" in document:
        for member in ("user", "namespace", "key"):
            if member in document:
                raise Unprocessable(Flaw(f"{place}/{member}", "stands beside an id: address by id or by name"))
        text = document["id"]
        memory_id = wire.parse_id(text) if isinstance(text, str) else None
        if memory_id is None:
            raise Unprocessable(Flaw(f"{place}/id", "must be the id of a memory"))
        return memory_id, None
    named = {member: document[member] for member in ("user", "namespace", "key") if member in document}
    draft = wire.parse_draft(named, limits, place)
    if draft.key is None:
        raise Unprocessable(Flaw(place, "needs an id or a key"))
    return ids.id_of(draft), draft


def _conditions(document: dict[str, object], place: str) -> Conditions:
    tags: dict[str, list[str]] = {}
    for member in ("if_match", "if_none_match"):
        value = document.get(member)
        if value is not None and not isinstance(value, str):
            raise Unprocessable(Flaw(f"{place}/{member}", "must be a string as in the header"))
        tags[member] = [] if value is None else [value]
    try:
        return write_conditions(tags["if_match"], tags["if_none_match"])
    except BadRequest as error:
        raise Unprocessable(Flaw(place, str(error))) from error


def outcome_document(operation: Operation, outcome: tuple[Outcome, str]) -> dict[str, object]:
    """One result: the status that the single operation would have had, and the memory or the problem."""
    result, shard = outcome
    if isinstance(result, SidecarError):
        found = to_problem(result)
        return {"status": found.status, "problem": found.document}
    if isinstance(result, Replay):
        told = {} if result.etag is None else {"memory": wire.replay_document(result, shard)}
        return {"status": result.status, "replayed": True, **told}
    if result is None:
        return {"status": 204}
    status = 200 if isinstance(operation, Get) else status_of(operation, result)
    return {"status": status, "memory": wire.memory_document(result, shard)}


def operation_count(document: object) -> int:
    """How many operations a body names, if it is one of a batch."""
    operations = document.get("operations") if isinstance(document, dict) else None
    return len(operations) if isinstance(operations, list) else 0
