"""A certificate authority of the test's own, and a server's certificate for 127.0.0.1 and localhost."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.availability import service_missing

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Files in PEM."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """By the program ``openssl``; skips the test where there is none."""
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    # Python 3.13 verifies strictly: an authority says what its key is for, and certificates whose key has signed them.
    (folder / "names").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    ca_key, request = folder / "ca.key", folder / "server.csr"
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    of_ca = (*usage, "-days", "2", "-subj", "/CN=Paidonce test authority", "-keyout", ca_key, "-out", made.authority)
    signed = ("-in", request, "-CA", made.authority, "-CAkey", ca_key, "-CAcreateserial", "-days", "2")
    for arguments in (
        ("req", "-x509", *_CURVE, *of_ca),
        ("req", *_CURVE, "-subj", "/CN=localhost", "-keyout", made.key, "-out", request),
        ("x509", "-req", *signed, "-extfile", folder / "names", "-out", made.certificate),
    ):
        try:
            done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, timeout=30)
        except OSError:
            service_missing("the program openssl is not installed")
        if done.returncode != 0:
            raise RuntimeError(f"openssl {arguments[0]} failed:\n{done.stderr}")
    return made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority that no system knows, and what a server needs."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority that has signed nothing of ours."""
    return make_certificates(tmp_path_factory.mktemp("others")).authority
