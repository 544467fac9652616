"""The server's own certificate authority: what it issues is trusted by those who trust it; its key stays private."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from atoll.guest.pid1 import trust
from atoll.model.errors import PlatformError
from atoll.tls import Authority


def handshake(server: ssl.SSLContext, ca: str, name: str) -> str:
    """The certificate's names as a client sees them that trusts `ca` alone. Raises ssl.SSLError."""
    client = ssl.create_default_context(cadata=ca)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=name)
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(6):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = near.getpeercert()
    assert certificate is not None
    return str(certificate["subjectAltName"])


def test_a_leaf_is_for_its_names_and_trusted_by_who_trusts_the_authority(tmp_path: Path) -> None:
    authority = Authority.kept_in(tmp_path, "egress")
    assert "api.test" in handshake(authority.server_context("api.test"), authority.pem, "api.test")
    assert "10.0.0.1" in handshake(authority.server_context("10.0.0.1"), authority.pem, "10.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server_context("api.test"), authority.pem, "evil.test")
    stranger = Authority.kept_in(tmp_path / "other", "egress")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger.server_context("api.test"), authority.pem, "api.test")


def test_the_authority_is_the_same_after_a_restart_and_its_key_is_private(tmp_path: Path) -> None:
    first = Authority.kept_in(tmp_path, "egress")
    again = Authority.kept_in(tmp_path, "egress")
    assert first.pem == again.pem
    assert "api.test" in handshake(again.server_context("api.test"), first.pem, "api.test")
    assert (tmp_path / "egress-ca.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in first.pem


def test_a_damaged_authority_says_which_file(tmp_path: Path) -> None:
    Authority.kept_in(tmp_path, "egress")
    (tmp_path / "egress-ca.key").write_text("nonsense")
    with pytest.raises(PlatformError, match=r"egress-ca\.key"):
        Authority.kept_in(tmp_path, "egress")


def test_trust_is_added_to_the_bundle_once_and_leaves_the_users_variables(tmp_path: Path) -> None:
    bundle = tmp_path / trust.BUNDLE[1:]
    bundle.parent.mkdir(parents=True)
    bundle.write_text("others")
    env = {"SSL_CERT_FILE": "/mine"}
    for _ in range(2):
        trust.install("PEM\n", env, root=str(tmp_path))
    assert bundle.read_text() == "others\nPEM\n"
    assert (tmp_path / trust.CERTIFICATE[1:]).read_text() == "PEM\n"
    assert env["SSL_CERT_FILE"] == "/mine"
    assert env["NODE_EXTRA_CA_CERTS"] == trust.CERTIFICATE


def test_trust_works_in_a_template_without_a_bundle(tmp_path: Path) -> None:
    trust.install("PEM\n", {}, root=str(tmp_path))
    assert (tmp_path / trust.BUNDLE[1:]).read_text() == "PEM\n"
