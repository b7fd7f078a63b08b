# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate authority and a certificate for each node, laid out as in /etc/pve."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = dt.timedelta(days=30)
DOMAIN = "example.org"
CA_FILE = "pve-root-ca.pem"


def make_certs(directory: Path, nodes: Mapping[str, Iterable[str]]) -> None:
    """Write pve-root-ca.pem and, for each node, nodes/<node>/pve-ssl.{pem,key}; a directory that has a CA is left as it is.

    nodes: each with the addresses and names it has besides its own and those of the loopback.
    """
    if (directory / CA_FILE).exists():
        return
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("Proxmox Virtual Environment", "PVE Cluster Manager CA")
    usage = _usage(sign=False, certs=True)
    ca = _builder(ca_name, ca_name, ca_key.public_key(), ca_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(usage, critical=True)
    for node, hosts in nodes.items():
        key = ec.generate_private_key(ec.SECP256R1())
        names = dict.fromkeys(("127.0.0.1", "::1", "localhost", node, f"{node}.{DOMAIN}", *hosts))
        leaf = _builder(_name("Proxmox Virtual Environment", f"{node}.{DOMAIN}"), ca_name, key.public_key(), ca_key.public_key())
        leaf = leaf.add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        leaf = leaf.add_extension(_usage(sign=True, certs=False), critical=True)
        home = directory / "nodes" / node
        home.mkdir(parents=True, exist_ok=True)
        (home / "pve-ssl.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.TraditionalOpenSSL
        (home / "pve-ssl.key").touch(mode=0o600)
        (home / "pve-ssl.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CA_FILE).write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _alternative(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(organisation: str, common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - VALID).not_valid_after(now + VALID)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)


def _usage(sign: bool, certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certs,
        crl_sign=certs,
        encipher_only=False,
        decipher_only=False,
    )
