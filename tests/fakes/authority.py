"""Certificates for tests, made as an operator makes them: with the openssl command."""

import ssl
import subprocess
from pathlib import Path
from urllib.parse import quote

CA_CONF = """\
[ca]
default_ca = this
[this]
database = {folder}/index
crlnumber = {folder}/crlnumber
default_md = sha256
default_crl_days = 30
"""


class Authority:
    """A certificate authority as docs tell an operator to make one, with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / "ca.key").exists():
            return  # that of a broker that is not the tests' own
        folder.mkdir()
        (folder / "index").write_text("")
        (folder / "crlnumber").write_text("01\n")
        (folder / "ca.cnf").write_text(CA_CONF.format(folder=folder))
        self._openssl(
            "req", "-x509", "-newkey", "ec", *self._curve(), "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.crt"
        )
        self.list_revoked()

    def issue(self, common_name: str, extension: str = "") -> tuple[Path, Path]:
        name = quote(common_name, safe="+#")  # a file's name bears less than a certificate's
        subject = "/CN=" + common_name.replace("/", "\\/")
        self._openssl("req", "-newkey", "ec", *self._curve(), "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        more = []
        if extension:
            (self.folder / f"{name}.ext").write_text(extension)
            more = ["-extfile", f"{name}.ext"]
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", *more,
            "-out", f"{name}.crt",
        )  # fmt: skip
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def revoke(self, certificate: Path) -> None:
        self._openssl("ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt", "-revoke", certificate.name)
        self.list_revoked()

    def list_revoked(self) -> None:
        self._openssl("ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt", "-gencrl", "-out", "crl.pem")

    def context(self) -> ssl.SSLContext:
        """For a client that trusts this authority, which says as little of itself as many do; Python 3.13 would mind."""
        made = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        made.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return made

    def _curve(self) -> list[str]:
        return ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
