"""A small certificate authority: one key and self-signed certificate in a directory, leaves for host names on demand.

    <directory>/<name>-ca.key   0600, the CA's private key (EC P-256)
    <directory>/<name>-ca.crt   what clients are to trust

Leaves live in memory only, all with one key of this process, and are made anew before they end.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.model import durable
from atoll.model.errors import PlatformError

_CA_DAYS = 3650
_LEAF_DAYS = 30
_RENEW_BEFORE_DAYS = 7
_KEPT_LEAVES = 256
_SKEW = datetime.timedelta(hours=1)
"""Certificates begin in the past: clocks differ."""


class Usage(Enum):
    """By which side a certificate is shown: who holds one for the one side is not believed on the other."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """One certificate and its key. Made by `kept_in` or `from_pem`."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self._contexts: OrderedDict[
            tuple[tuple[str, ...], tuple[str, ...]], tuple[datetime.datetime, ssl.SSLContext]
        ] = OrderedDict()

    @staticmethod
    def kept_in(directory: Path, name: str) -> Authority:
        """The one in `directory`, made where there is none. Raises PlatformError when it can be neither."""
        key, certificate = directory / f"{name}-ca.key", directory / f"{name}-ca.crt"
        try:
            if not (key.exists() and certificate.exists()):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _make(key, certificate, f"Atoll {name} CA")
            return Authority.from_pem(certificate.read_text(), key.read_text())
        except (OSError, ValueError) as error:
            raise PlatformError(
                f"the certificate authority in {directory} cannot be used: {error}", hint=f"remove {key}"
            ) from error

    @staticmethod
    def from_pem(certificate: str, key: str) -> Authority:
        """Raises ValueError: it is none."""
        loaded = serialization.load_pem_private_key(key.encode(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("its key is not a key of this server")
        return Authority(x509.load_pem_x509_certificate(certificate.encode()), loaded)

    @cached_property
    def _leaf_key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    @property
    def pem(self) -> str:
        """The CA's certificate, for those who are to trust it."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self, *names: str, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
        """A TLS server's side with a certificate for these host names (or addresses), offering `alpn`."""
        now = datetime.datetime.now(datetime.UTC)
        known = self._contexts.get((names, alpn))
        if known is not None and known[0] > now:
            self._contexts.move_to_end((names, alpn))
            return known[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(list(alpn))
        _load(context, self.issue(names) + _private_pem(self._leaf_key))
        self._contexts[names, alpn] = (now + datetime.timedelta(days=_LEAF_DAYS - _RENEW_BEFORE_DAYS), context)
        while len(self._contexts) > _KEPT_LEAVES:
            self._contexts.popitem(last=False)
        return context

    @property
    def key_pem(self) -> str:
        """The CA's private key: its holder is believed by all who trust the certificate."""
        return _private_pem(self._key).decode()

    @property
    def leaf_key_pem(self) -> bytes:
        """The process's leaf key, which `issue` certifies."""
        return _private_pem(self._leaf_key)

    def issue(self, names: Sequence[str], *, usage: Usage = Usage.SERVER, days: int = _LEAF_DAYS) -> bytes:
        """A leaf certificate (PEM) for the process's leaf key. `usage`: which side of a connection may show it."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage.value]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._leaf_key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _make(key_path: Path, certificate_path: Path, title: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    signing = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=_CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    durable.write(key_path, _private_pem(key))
    durable.write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """`load_cert_chain` takes only files; this one never touches a disk."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
