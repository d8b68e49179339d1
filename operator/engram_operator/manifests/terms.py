"""What an installation decides about all of its tenants. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engram_contract.policy import PLAN_QUOTAS, Plan, Quota

FILE_GRACE_S: Final = 300.0  # a kubelet brings a changed file within two minutes, and again as long for a slow one


@dataclass(frozen=True, slots=True)
class Terms:
    """The quotas of each plan, and how long kubelets may take to bring a changed file.

    So long a new password is beside the old one before the role gets it, and no pod is made anew for an old file.
    """

    plans: Mapping[Plan, Quota]
    file_grace_s: float = FILE_GRACE_S


USUAL: Final = Terms(PLAN_QUOTAS)
