"""The outside of every resource: apiVersion, kind and metadata, read once; the inside goes to the kind's dataclass.

Pure; standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from engram_contract.kinds import LABEL_PATTERN, Text
from engram_contract.names import API_VERSION
from engram_contract.parse import RESOURCE, Refused, parse, refuse_unknown, shown

T = TypeVar("T")

DEFAULT_NAMESPACE: Final = "default"  # as kubectl without a context
_LABEL: Final = Text(63, LABEL_PATTERN, "lower-case letters, digits and dashes")


class BadSpec(Refused):
    """A resource is wrong: `path` names the field, such as `spec.shardOverrides[1].weight`, `reason` says why."""


@dataclass(frozen=True, slots=True)
class _Metadata:
    name: Annotated[str, _LABEL]
    namespace: Annotated[str, _LABEL] = DEFAULT_NAMESPACE


def read_resource(cls: type[T], body: object, kind: str, max_name_chars: int) -> T:
    """The dataclass of a whole resource, with the fields `namespace` and `name` of its metadata. Raises BadSpec."""
    try:
        return _read(cls, body, kind, max_name_chars)
    except Refused as refused:
        raise BadSpec(refused.path, refused.reason) from None


def _read(cls: type[T], body: object, kind: str, max_name_chars: int) -> T:
    if not isinstance(body, Mapping):
        raise Refused("", f"{shown(body)} is no resource")
    for name, expected in (("apiVersion", API_VERSION), ("kind", kind)):
        if body.get(name) != expected:
            raise Refused(name, f"{shown(body.get(name))} is not {expected}")
    refuse_unknown(body, ("apiVersion", "kind", "metadata", "spec", "status"))
    metadata = _under("metadata", _Metadata, _own_part(body.get("metadata")))
    if len(metadata.name) > max_name_chars:
        raise Refused("metadata.name", f"has {len(metadata.name)} characters, more than {max_name_chars}")
    if body.get("spec") is None:
        raise Refused("spec", "is required")
    return _under("spec", cls, body["spec"], namespace=metadata.namespace, name=metadata.name)


def _own_part(metadata: object) -> object:
    """The members of the metadata that are ours to check; the API server answers for the others."""
    if not isinstance(metadata, Mapping):
        return {} if metadata is None else metadata
    return {name: metadata[name] for name in ("name", "namespace") if name in metadata}


def _under(path: str, cls: type[T], value: object, **given_fields: Any) -> T:  # noqa: ANN401  as dataclasses take them
    try:
        return parse(cls, value, RESOURCE, **given_fields)
    except Refused as refused:
        raise refused.under(path) from None
