"""The certificate that the injector serves, read from its Secret again and again and changed without a restart.

Promises
1. A new connection gets the new certificate; running ones are left alone.
2. Only a certificate whose key belongs to it is taken over; a Secret that is gone or garbage leaves the old one.
3. The key is never written to a disk.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from typing import Final

from engram_operator.clients import x509
from engram_operator.clients.kube import SECRETS, Kube
from engram_operator.errors import ApiError, BadCertificate
from engram_operator.metrics import InjectorMetrics
from engram_operator.plan.certificates import DAY_S, Certificate

READ_S: Final = 10.0

log = logging.getLogger(__name__)


def server_context() -> ssl.SSLContext:
    """A context for a server that has no certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Gives new handshakes of the context this certificate. Raises BadCertificate, and then nothing changed."""
    _load(server_context(), certificate, key)  # one step of two that fails would leave a context without a key
    _load(context, certificate, key)


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # The library takes files only; this one is memory, without a name.
    handle = os.memfd_create("engram-serving", os.MFD_CLOEXEC)
    try:
        os.write(handle, certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    except ssl.SSLError as error:
        raise BadCertificate("the certificate and its key do not load") from error
    finally:
        os.close(handle)


class ServedCertificate:
    """The Secret's certificate in a context. `loaded` is None until there was one."""

    def __init__(
        self, kube: Kube, namespace: str, secret_name: str, wall_clock: Callable[[], float], metrics: InjectorMetrics
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._secret_name = secret_name
        self._wall_clock = wall_clock
        self._metrics = metrics
        self._has_any = asyncio.Event()
        self._trouble = ""
        self.context = server_context()
        self.loaded: Certificate | None = None
        metrics.show_certificate_days_left(self._days_left)

    def _days_left(self) -> float:
        """Of the certificate that is served; 0 before the first."""
        return (self.loaded.not_after_s - self._wall_clock()) / DAY_S if self.loaded else 0.0

    def fault(self) -> str | None:
        """Why nobody would trust this server now; None if they would."""
        if self.loaded is None:
            return (
                f"Secret {self._namespace}/{self._secret_name} holds no certificate yet; the operator's leader makes it"
            )
        if not self.loaded.is_valid_at(self._wall_clock()):
            return f"the certificate in Secret {self._namespace}/{self._secret_name} is not valid at this time"
        return None

    async def wait(self) -> None:
        """Returns when there is a certificate to serve."""
        await self._has_any.wait()

    async def run(self) -> None:
        """Reads the Secret for ever."""
        while True:
            try:
                await self.refresh()
            except (ApiError, BadCertificate) as error:
                self._tell(str(error))
            else:
                self._trouble = ""
            await asyncio.sleep(READ_S if self.loaded else 1.0)

    def _tell(self, trouble: str) -> None:
        """Logs what is new: before the first certificate the same is found every second."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("certificate not read", extra={"reason": trouble, "has_old": self.loaded is not None})

    async def refresh(self) -> None:
        """Takes over the Secret's certificate if it is another one. Raises ApiError, BadCertificate."""
        secret = await self._kube.fetch(SECRETS, self._namespace, self._secret_name)
        data = x509.decoded(secret.get("data"))
        found = x509.read_served(data)
        if self.loaded is not None and self.loaded.fingerprint == found.fingerprint:
            return
        load_chain(self.context, data[x509.CERT_KEY], data[x509.KEY_KEY])
        self.loaded = found
        self._metrics.set_certificate_expiry(found.not_after_s)
        self._has_any.set()
        log.info("certificate loaded", extra={"fingerprint": found.fingerprint[:16], "not_after_s": found.not_after_s})
