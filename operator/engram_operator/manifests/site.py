"""What the operator knows of its installation and no spec says: where it runs, and from which images.

Pure.
"""

from dataclasses import dataclass

from engram_operator.manifests.meta import Manifest


@dataclass(frozen=True, slots=True)
class Site:
    """One installation of the operator."""

    namespace: str
    operator_labels: tuple[tuple[str, str], ...]  # of the operator's pods, for the network policies
    postgres_image: str
    redis_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()

    @property
    def pull_secrets(self) -> Manifest:
        """The pod's member, if there are any."""
        if not self.image_pull_secrets:
            return {}
        return {"imagePullSecrets": [{"name": name} for name in self.image_pull_secrets]}
