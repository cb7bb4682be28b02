# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's certificate authority, and what its exchanges show: a good certificate, and one for each way in which it can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY, STRANGER = "Titan lab CA", "Somebody else's CA"
# Name -> (who signed it, valid from and until, in days from now).
KINDS = {"good": (AUTHORITY, -1, 20), "expired": (AUTHORITY, -20, -1), "not_yet_valid": (AUTHORITY, 1, 20), "unknown_ca": (STRANGER, -1, 20)}


def make(names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The CA certificate to trust, and file name -> content of a certificate and its key of each kind, for these names."""
    signers = {AUTHORITY: ec.generate_private_key(ec.SECP256R1()), STRANGER: ec.generate_private_key(ec.SECP256R1())}
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    files: dict[str, str] = {}
    for kind, (issuer, since, until) in KINDS.items():
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        usages = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
        files[f"{kind}.pem"] = _issue(names[0], key, issuer, signers[issuer], (since, until), x509.BasicConstraints(False, None), alternatives, usages)
        files[f"{kind}.key"] = private
    own = signers[AUTHORITY]
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only")
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **dict.fromkeys(unused, False))
    return _issue(AUTHORITY, own, AUTHORITY, own, (-30, 30), x509.BasicConstraints(True, None), usage), files


def _issue(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, days: tuple[int, int], *more: x509.ExtensionType
) -> str:
    now = datetime.now(UTC)
    # without the two key identifiers a strict client (Python 3.13) refuses it
    names = (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    for extension in (*more, *names):
        builder = builder.add_extension(extension, critical=isinstance(extension, (x509.BasicConstraints, x509.KeyUsage)))
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
