"""A self-signed certificate: phones and headsets give sensors and WebXR to pages over HTTPS only."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from data.errors import ConfigError

FOLDER = Path.home() / ".cache" / "deft" / "certificate"


def context(certificate: str | None, key: str | None, host: str) -> ssl.SSLContext:
    """For a server; without files given, with a certificate of its own that is kept for the next time."""
    if (certificate is None) != (key is None):
        raise ConfigError("teleop.certificate and teleop.key belong together: give both, or neither.")
    if certificate is None or key is None:
        certificate, key = _own(host)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"teleop.certificate {certificate} with {key} cannot be loaded: {error}.") from None
    return made


def _own(host: str) -> tuple[str, str]:
    FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key = FOLDER / f"{host}.pem", FOLDER / f"{host}.key"
    if not (certificate.exists() and key.exists()):
        name = f"IP:{host}" if host.replace(".", "").isdigit() else f"DNS:{host}"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                   "-days", "825", "-subj", "/CN=deft", "-addext", f"subjectAltName={name},DNS:localhost",
                   "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            raise ConfigError(
                f"teleop.https: openssl could not make a certificate ({str(said).strip()}): install openssl, or give"
                " teleop.certificate and teleop.key."
            ) from None
        key.chmod(0o600)
    return str(certificate), str(key)
