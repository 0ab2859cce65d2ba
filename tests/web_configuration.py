"""A web configuration and its certificates in a folder, for tests of TLS and passwords."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import bcrypt
import trustme
import yaml
from tests.support import ExporterProcess

NO_DATABASE = "host=/nonexistent dbname=nothing"
PASSWORD = "correct horse: battery"  # noqa: S105 - of nobody
TLS = {"cert_file": "server.crt", "key_file": "server.key"}


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


@dataclass
class Setting:
    """A folder with a web configuration and certificates."""

    folder: Path
    ca: trustme.CA

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Create an authority and a certificate for the server."""
        made = cls(folder, trustme.CA())
        made.ca.cert_pem.write_to_path(str(folder / "ca.crt"))
        made.certify("server", "localhost", "127.0.0.1")
        return made

    @property
    def file(self) -> Path:
        """The web configuration."""
        return self.folder / "web.yml"

    def write(self, **sections: Any) -> None:  # noqa: ANN401
        """Replace the web configuration atomically."""
        new = self.folder / "new.yml"
        new.write_text(yaml.safe_dump(sections), encoding="utf-8")
        new.replace(self.file)

    def certify(self, name: str, *identities: str, ca: trustme.CA | None = None) -> dict[str, str]:
        """Write a certificate and its key; return the options with which curl uses them."""
        issued = (ca or self.ca).issue_cert(*identities)
        issued.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.crt"))
        return {"--cert": str(self.folder / f"{name}.crt"), "--key": str(self.folder / f"{name}.key")}

    @contextmanager
    def exporter(self) -> Iterator[ExporterProcess]:
        """Run an exporter with it, without a database."""
        with ExporterProcess(NO_DATABASE, "--web.config.file", str(self.file)) as exporter:
            yield exporter
