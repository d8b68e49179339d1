"""The door to certificates: P-256 keys, one CA of ours, serving certificates for one Service.

Promises
1. What is made here passes a strict verification (RFC 5280): key identifiers, key usage, critical constraints.
2. What is read here is checked: a key belongs to its certificate, a signature to its CA; else BadCertificate.

P-256 because managed API servers are known to refuse Ed25519. Must never: put a key into an error or a log.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engram_operator.errors import BadCertificate
from engram_operator.plan.certificates import LIFETIMES, Certificate, Lifetimes, Stored

CA_NAME: Final = "engram-injector-ca"
CERT_KEY: Final = "tls.crt"
KEY_KEY: Final = "tls.key"
BUNDLE_KEY: Final = "ca.crt"
CA_KEY_KEY: Final = "ca.key"
MAX_BUNDLE: Final = 4  # a Secret deleted again and again must not grow the bundle without end

_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


def decoded(data: Mapping[str, Any] | None) -> dict[str, bytes]:
    """The `data` of a Secret as bytes. Raises BadCertificate for what is no base64."""
    try:
        return {name: base64.b64decode(text or "", validate=True) for name, text in (data or {}).items()}
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadCertificate("the Secret's data is no base64") from error


def read_stored(data: Mapping[str, bytes]) -> Stored:
    """What the Secret holds. Raises BadCertificate if no CA can sign; a bad serving certificate is merely None."""
    bundle = _certificates(data, BUNDLE_KEY)
    if not _belongs(bundle[0], _key(data, CA_KEY_KEY)):
        raise BadCertificate(f"{CA_KEY_KEY} is not the key of the first certificate in {BUNDLE_KEY}")
    try:
        serving: Certificate | None = _facts(_served(data), bundle)
    except BadCertificate:
        serving = None
    return Stored(tuple(_facts(each, ()) for each in bundle), serving)


def read_served(data: Mapping[str, bytes]) -> Certificate:
    """The serving certificate of a Secret, whose key belongs to it. Raises BadCertificate."""
    return _facts(_served(data), ())


def fingerprints(bundle: bytes) -> frozenset[str]:
    """Of each certificate in a bundle of PEM; empty if it is none."""
    try:
        return frozenset(_fingerprint(each) for each in x509.load_pem_x509_certificates(bundle))
    except ValueError:
        return frozenset()


def still_valid(bundle: bytes, now_s: float) -> tuple[bytes, ...]:
    """The certificates of a bundle that are valid at `now_s`, each as PEM; none if it is no bundle."""
    try:
        found = x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return ()
    return tuple(_pem(each) for each in found if _facts(each, ()).is_valid_at(now_s))


def joined(certificates: Sequence[bytes]) -> bytes:
    """A bundle of the first MAX_BUNDLE different certificates."""
    return b"".join(list(dict.fromkeys(certificates))[:MAX_BUNDLE])


def make_ca(now_s: float, lifetimes: Lifetimes = LIFETIMES) -> KeyPair:
    """A new CA, valid from a moment ago."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial number in the name: two CAs of one bundle must differ in it, or a verifier may try the wrong one alone.
    serial = x509.random_serial_number()
    name = _named(f"{CA_NAME}-{serial:x}"[:64])
    builder = _builder(key, name, now_s - lifetimes.backdate_s, lifetimes.ca_s).issuer_name(name).serial_number(serial)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return _signed(builder, key, key)


def make_serving(ca: KeyPair, dns_names: Sequence[str], now_s: float, lifetimes: Lifetimes = LIFETIMES) -> KeyPair:
    """A new serving certificate for these names, valid from a moment ago. Raises BadCertificate."""
    issuer = _load(ca.certificate, CERT_KEY)[0]
    key = ec.generate_private_key(ec.SECP256R1())
    begin_s = now_s - lifetimes.backdate_s
    builder = _builder(key, _named(dns_names[0][:64]), begin_s, lifetimes.serving_s).issuer_name(issuer.subject)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage("digital_signature"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    builder = builder.add_extension(names, critical=False)
    issuer_key = _key({CA_KEY_KEY: ca.key}, CA_KEY_KEY)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return _signed(builder.add_extension(identifier, critical=False), key, issuer_key)


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, begin_s: float, lifetime_s: float
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
    builder = builder.not_valid_before(datetime.fromtimestamp(begin_s, UTC))
    builder = builder.not_valid_after(datetime.fromtimestamp(begin_s + lifetime_s, UTC))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> KeyPair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(_pem(builder.sign(issuer_key, hashes.SHA256())), text)


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in wanted for name in _USAGES})


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _certificates(data: Mapping[str, bytes], name: str) -> list[x509.Certificate]:
    if not data.get(name):
        raise BadCertificate(f"{name} is missing")
    return _load(data[name], name)


def _load(text: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise BadCertificate(f"{name} holds no certificates") from error


def _key(data: Mapping[str, bytes], name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(data.get(name, b""), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadCertificate(f"{name} holds no key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadCertificate(f"{name} holds no key of an elliptic curve")
    return key


def _belongs(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False


def _served(data: Mapping[str, bytes]) -> x509.Certificate:
    certificate = _certificates(data, CERT_KEY)[0]
    if not _belongs(certificate, _key(data, KEY_KEY)):
        raise BadCertificate(f"{KEY_KEY} is not the key of {CERT_KEY}")
    return certificate


def _facts(certificate: x509.Certificate, bundle: Sequence[x509.Certificate]) -> Certificate:
    return Certificate(
        fingerprint=_fingerprint(certificate),
        not_before_s=certificate.not_valid_before_utc.timestamp(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
        dns_names=_dns_names(certificate),
        signer=next((_fingerprint(ca) for ca in bundle if _is_signed_by(certificate, ca)), ""),
    )


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
