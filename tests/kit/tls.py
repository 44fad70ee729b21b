"""Certificates for tests, made by openssl."""

import subprocess
from pathlib import Path


def self_signed(directory: Path) -> Path:
    """A file with a certificate for 127.0.0.1, which vouches for itself, and its key."""
    path, key = directory / "cert.pem", directory / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=holdfast", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run([*made, *name], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path
