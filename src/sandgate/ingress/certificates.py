"""What HTTPS is served with: a local authority and its certificate, or the operator's own.

The local authority is name-constrained. Whoever trusts it trusts it for the node's domain,
localhost and loopback addresses, not for the web: a stolen CA key cannot impersonate a bank.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandgate.durable import replace_file

_CA_LIFE = datetime.timedelta(days=3652)
_LEAF_LIFE = datetime.timedelta(days=730)  # some clients refuse more than 825 days
_RENEW_BEFORE = datetime.timedelta(days=30)
_CLOCK_SKEW = datetime.timedelta(hours=1)
_LOOPBACK = IPv4Network("127.0.0.0/8")
_SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


class CertificateError(ValueError):
    """A certificate or key of the operator's that cannot be used: which, why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the files are."""

    ca: Path | None
    """The local authority's certificate; None with the operator's own certificate."""
    chain: Path
    """Certificate chain and key in one PEM file, as HAProxy reads it; only its owner can."""
    bundle: Path
    """The system's authorities and ours, for `SSL_CERT_FILE` and `REQUESTS_CA_BUNDLE`."""


def ensure_certificates(
    directory: Path, domain: str, extra_addresses: Sequence[IPv4Address]
) -> Certificates:
    """Make or renew the local authority and its certificate in `directory`; cheap when current.

    The certificate is for `domain`, `*.domain`, localhost, 127.0.0.1 and `extra_addresses` (the
    listen address; 0.0.0.0 is skipped). It is renewed when these change or fewer than 30 days are
    left. The authority is replaced when it may not vouch for these, and must then be trusted anew.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ca_path, ca_key_path = directory / "ca.pem", directory / "ca.key"
    chain_path = directory / "chain.pem"
    named = {address for address in extra_addresses if not address.is_unspecified}
    addresses = sorted({IPv4Address("127.0.0.1"), *named})
    constraints = _constraints(domain, addresses)

    authority = _load_authority(ca_path, ca_key_path)
    if authority is None or not _authority_fits(authority[0], constraints):
        authority = _make_authority(constraints)
        # The key first: a certificate without its key is seen as absent, and both are made again.
        replace_file(ca_key_path, _key_pem(authority[1]))
        replace_file(ca_path, _pem(authority[0]), mode=0o644)
    names = _leaf_names(domain, addresses)
    if not _leaf_fits(chain_path, authority[0], names):
        leaf, key = _make_leaf(*authority, domain, names)
        replace_file(chain_path, _pem(leaf) + _key_pem(key))
    bundle = directory / "bundle.pem"
    replace_file(bundle, _system_authorities() + _pem(authority[0]), mode=0o644, synced=False)
    return Certificates(ca=ca_path, chain=chain_path, bundle=bundle)


def operator_certificates(
    directory: Path, domain: str, tls_cert: Path, tls_key: Path
) -> Certificates:
    """Check the operator's certificate and key and put them together for HAProxy.

    Raises :class:`CertificateError` unless they are readable, belong together, are valid now and
    are for `domain` and `*.domain`.
    """
    leaf, *rest = _read_chain(tls_cert)
    key_pem = _read_key(tls_key, leaf, tls_cert)
    now = datetime.datetime.now(datetime.UTC)
    if now < leaf.not_valid_before_utc:
        raise CertificateError(
            f"tls_cert {tls_cert} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} "
            "UTC: check the machine's clock or use another certificate"
        )
    if now >= leaf.not_valid_after_utc:
        raise CertificateError(
            f"tls_cert {tls_cert} expired on {leaf.not_valid_after_utc:%Y-%m-%d}: renew it"
        )
    present = {name.lower() for name in _dns_names(leaf)}
    missing = [name for name in (domain, f"*.{domain}") if name not in present]
    if missing:
        raise CertificateError(
            f"tls_cert {tls_cert} is for {', '.join(sorted(present)) or 'no DNS name'}, not for "
            f"{' and '.join(missing)}: request a certificate with both {domain} and *.{domain} as "
            "subject alternative names, or set domain to match"
        )
    directory.mkdir(parents=True, exist_ok=True)
    chain = directory / "chain.pem"
    replace_file(chain, b"".join(_pem(part) for part in (leaf, *rest)) + key_pem)
    bundle = directory / "bundle.pem"
    replace_file(bundle, _system_authorities(), mode=0o644, synced=False)
    return Certificates(ca=None, chain=chain, bundle=bundle)


def _constraints(domain: str, addresses: Sequence[IPv4Address]) -> x509.NameConstraints:
    own = [IPv4Network(address) for address in addresses if address not in _LOOPBACK]
    permitted: list[x509.GeneralName] = [x509.DNSName(domain), x509.DNSName("localhost")]
    permitted += [x509.IPAddress(network) for network in (_LOOPBACK, *own)]
    return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)


def _leaf_names(domain: str, addresses: Sequence[IPv4Address]) -> x509.SubjectAlternativeName:
    names = [x509.DNSName(name) for name in (domain, f"*.{domain}", "localhost")]
    return x509.SubjectAlternativeName([*names, *map(x509.IPAddress, addresses)])


def _make_authority(
    constraints: x509.NameConstraints,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own for each, so that a trust store with an older one is not confused.
    mark = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sandgate"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Sandgate local CA {mark.digest.hex()[:8]}"),
        ]
    )
    certificate = (
        _builder(name, name, key.public_key(), _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(mark, critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _make_leaf(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    domain: str,
    names: x509.SubjectAlternativeName,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name holds at most 64 characters, a domain more; clients look at the SAN alone.
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sandgate node")])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), _LEAF_LIFE)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_authority(
    ca_path: Path, key_path: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """What an earlier start made, or None if it is absent or unusable."""
    try:
        ca = x509.load_pem_x509_certificate(ca_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        return None
    return ca, key


def _authority_fits(ca: x509.Certificate, constraints: x509.NameConstraints) -> bool:
    if ca.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < _RENEW_BEFORE:
        return False
    present = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    # The same names, and no address more than it may vouch for: fewer are no reason to ask every
    # user to trust another authority.
    return _dns_subtrees(present) == _dns_subtrees(constraints) and all(
        any(_covers(have, want) for have in _ip_subtrees(present))
        for want in _ip_subtrees(constraints)
    )


def _dns_subtrees(constraints: x509.NameConstraints) -> set[str]:
    subtrees = constraints.permitted_subtrees or []
    return {name.value for name in subtrees if isinstance(name, x509.DNSName)}


def _ip_subtrees(constraints: x509.NameConstraints) -> list[IPv4Network | IPv6Network]:
    subtrees = constraints.permitted_subtrees or []
    return [ip_network(str(name.value)) for name in subtrees if isinstance(name, x509.IPAddress)]


def _covers(have: IPv4Network | IPv6Network, want: IPv4Network | IPv6Network) -> bool:
    return isinstance(have, IPv4Network) and isinstance(want, IPv4Network) and want.subnet_of(have)


def _leaf_fits(path: Path, ca: x509.Certificate, names: x509.SubjectAlternativeName) -> bool:
    try:
        pem = path.read_bytes()
        leaf = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, password=None)
        leaf.verify_directly_issued_by(ca)
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
        return False
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    present = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        left >= _RENEW_BEFORE
        and set(present) == set(names)
        and key.public_key() == leaf.public_key()
    )


def _read_chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"tls_cert {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError(
            f"tls_cert {path} holds no PEM certificate: expected the chain, the node's "
            "certificate first"
        ) from None


def _read_key(path: Path, leaf: x509.Certificate, tls_cert: Path) -> bytes:
    """The operator's key as unencrypted PEM, known to belong to `leaf`."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise CertificateError(f"tls_key {path} cannot be read: {error.strerror}") from None
    except TypeError:
        raise CertificateError(
            f"tls_key {path} is encrypted: store it without a pass phrase, readable by root only"
        ) from None
    except ValueError:
        raise CertificateError(f"tls_key {path} holds no PEM private key") from None
    if key.public_key() != leaf.public_key():
        raise CertificateError(
            f"tls_key {path} does not belong to the first certificate in tls_cert {tls_cert}: "
            "name the key it was issued for, and put the node's certificate first in the chain"
        )
    return _key_pem(key)


def _dns_names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _system_authorities() -> bytes:
    """The machine's CA bundle, or nothing where there is none."""
    default = ssl.get_default_verify_paths().openssl_cafile
    for path in (*_SYSTEM_BUNDLES, Path(default)):
        if path.is_file():
            return path.read_bytes().rstrip() + b"\n"
    return b""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
