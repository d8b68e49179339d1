"""Label selectors as Kubernetes has them: which namespaces may use a cluster.

Pure; standard library only. Source: Kubernetes API reference, LabelSelector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from engram_contract.kinds import Items, Pairs, Text
from engram_contract.parse import Refused, Section

MAX_LABELS: Final = 32
MAX_VALUES: Final = 32
LABEL_KEY: Final = Text(
    317,  # a prefix of 253, a slash, a name of 63
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    "the key of a label",
)
LABEL_VALUE: Final = Text(63, r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", "the value of a label", min_chars=0)


class Operator(StrEnum):
    """How a label is compared with the values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: Annotated[str, LABEL_KEY]
    operator: Operator
    values: Annotated[tuple[str, ...], Items(LABEL_VALUE, MAX_VALUES)] = ()

    def __post_init__(self) -> None:
        if (self.operator in (Operator.IN, Operator.NOT_IN)) != bool(self.values):
            raise Refused("values", "In and NotIn need values, Exists and DoesNotExist take none")

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True if the labels meet the condition; a label that is absent is not in any list."""
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All conditions together. The empty selector matches everything."""

    match_labels: Annotated[tuple[tuple[str, str], ...], Pairs(LABEL_KEY, LABEL_VALUE, MAX_LABELS)] = ()
    match_expressions: Annotated[tuple[Requirement, ...], Items(Section(Requirement), MAX_LABELS)] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """True if the labels meet every condition."""
        return all(labels.get(key) == value for key, value in self.match_labels) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )
