"""Check signatures in a process of its own: `python -m edge_agent.documents.signature <public key>:<signature> … < signed bytes`.

A process of its own, because the library would stay in the agent's memory for months, and a document comes once a week.
The key and the check are the models' own: securesystemslib's, with or without `cryptography`.
"""

import subprocess
import sys
from collections.abc import Sequence

from edge_agent.errors import DocumentLaterError, UntrustedDocumentError

EXIT_SIGNED = 0
EXIT_FORGED = 3

CHECK_WITHIN_S = 60.0


def check_signatures(signed: bytes, signatures: Sequence[tuple[str, str]]) -> None:
    """Check in a process of its own that one of some trusted keys signed some bytes.

    Args:
        signed: the bytes that were signed.
        signatures: public key and signature, in hexadecimal, of trusted keys alone.

    Raises:
        UntrustedDocumentError: none of the keys signed this.
        DocumentLaterError: the check could not be made.
    """
    pairs = [f"{key}:{signature}" for key, signature in signatures]
    command = [sys.executable, "-P", "-m", "edge_agent.documents.signature", *pairs]
    try:
        done = subprocess.run(command, input=signed, capture_output=True, timeout=CHECK_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DocumentLaterError(f"the signature could not be checked: {error}; it is tried again") from error
    if done.returncode == EXIT_FORGED:
        raise UntrustedDocumentError("the signature is not of a trusted key")
    if done.returncode != EXIT_SIGNED:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DocumentLaterError(f"the signature could not be checked: {last_line[:300]}; it is tried again")


_KEY_TYPE = "ed25519"
_MAX_SIGNED_BYTES = 2 * 1024 * 1024


def is_signed(public_key: str, signature: str, signed: bytes) -> bool:
    """Whether the owner of the key signed these bytes."""
    # Loaded in the process that checks alone.
    from securesystemslib.exceptions import UnverifiedSignatureError  # noqa: PLC0415
    from securesystemslib.signer import Signature, SSlibKey  # noqa: PLC0415

    key = SSlibKey("document", _KEY_TYPE, _KEY_TYPE, {"public": public_key})
    try:
        key.verify_signature(Signature("document", signature), signed)
    except UnverifiedSignatureError:
        return False
    return True


def main() -> int:
    """Return the exit code: one of the keys signed this, or none did."""
    signed = sys.stdin.buffer.read(_MAX_SIGNED_BYTES)
    pairs = [argument.partition(":") for argument in sys.argv[1:]]
    return EXIT_SIGNED if any(is_signed(key, signature, signed) for key, _, signature in pairs) else EXIT_FORGED


if __name__ == "__main__":
    sys.exit(main())
