"""A certificate authority made by the commands that docs/operator/install.md shows, and by nothing else."""

import re
import subprocess
from pathlib import Path

from schemas.ids import is_role_name

ROOT = Path(__file__).resolve().parent.parent.parent


def documented_commands(step: str) -> str:
    """The shell block of docs/operator/install.md that begins with `# ca: <step>`."""
    (block,) = re.findall(rf"```sh\n# ca: {step}\n(.*?)```", (ROOT / "docs/operator/install.md").read_text(), re.DOTALL)
    return str(block)


class SmallAuthority:
    """Runs the documented steps in a folder."""

    def __init__(self, folder: Path, host: str = "localhost") -> None:
        folder.mkdir(exist_ok=True)
        self._run("once", folder, CONFIG=str(ROOT / "deploy/ca/openssl.cnf"))
        self.folder = folder / "ca"
        self._run("broker", self.folder, HOST=host)

    def sign(self, device: str, request: Path) -> Path:
        """The certificate for a request, in the name that the signer gives."""
        (self.folder / f"{device}.csr").write_bytes(request.read_bytes())
        self._run("device", self.folder, DEVICE=device)
        return self.folder / f"{device}.pem"

    def issue(self, name: str) -> None:
        """Key and certificate of a role or device, made here: `<name>.key` and `<name>.pem` in the authority's folder."""
        if is_role_name(name):
            self._run("role", self.folder, ROLE=name)
            return
        request = self.folder / f"{name}.request"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        arguments = ["-subj", f"/CN={name}", "-keyout", str(self.folder / f"{name}.key"), "-out", str(request)]
        subprocess.run(["openssl", "req", "-new", *curve, *arguments], check=True, capture_output=True)
        self.sign(name, request)

    def revoke(self, device: str) -> None:
        """Shut a device out."""
        self._run("revoke", self.folder, DEVICE=device)

    def _run(self, step: str, folder: Path, **variables: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", documented_commands(step)],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
