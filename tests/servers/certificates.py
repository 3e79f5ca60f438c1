"""Certificates for servers that speak TLS."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme


class Certificates(NamedTuple):
    """Files: of an authority, and what it certified, each with its key."""

    #: The certificate of the authority.
    authority: Path
    #: For the host ``localhost``.
    server: Path
    client: Path


def certify(folder: Path) -> Certificates:
    """Return certificates in ``folder``, which are made where they are not there."""
    files = Certificates(*(folder / f"{name}.pem" for name in Certificates._fields))
    if not files.authority.exists():
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(files.authority))
        for name, file in (("localhost", files.server), ("client@localhost", files.client)):
            ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(file))
    return files
