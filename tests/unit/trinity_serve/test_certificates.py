"""What `trinity certs` writes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from cluster.errors import ConfigError
from trinity_serve.certificates import write_certificates
from trinity_serve.cli.main import main


def test_each_host_has_a_folder_with_a_private_key_and_the_ca(tmp_path: Path) -> None:
    assert main(["certs", str(tmp_path / "c"), "--host", "10.0.0.7", "--host", "node-2.lan"]) == 0
    for host in ("10.0.0.7", "node-2.lan"):
        own = tmp_path / "c" / host
        assert {path.name for path in own.iterdir()} == {"cert.pem", "key.pem", "ca.pem"}
        assert stat.S_IMODE((own / "key.pem").stat().st_mode) == 0o600
        assert (own / "ca.pem").read_bytes() == (tmp_path / "c" / "ca.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "c" / "ca.key").stat().st_mode) == 0o600


def test_a_renewal_keeps_the_ca(tmp_path: Path) -> None:
    (own,) = write_certificates(tmp_path, ["a"], 2)
    first = (own / "cert.pem").read_bytes()
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    write_certificates(tmp_path, ["a"], 2)
    renewed = x509.load_pem_x509_certificate((own / "cert.pem").read_bytes())
    assert (own / "cert.pem").read_bytes() != first
    renewed.verify_directly_issued_by(ca)


@pytest.mark.parametrize("host", ["", "../x", "a/b", "."])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError):
        write_certificates(tmp_path, [host], 2)


def test_half_a_ca_is_refused(tmp_path: Path) -> None:
    write_certificates(tmp_path, ["a"], 2)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match="neither"):
        write_certificates(tmp_path, ["a"], 2)
