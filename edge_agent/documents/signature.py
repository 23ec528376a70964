"""Run the process that checks signatures (`edge_agent.documents.verify`), and name its exit codes."""

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
    command = [sys.executable, "-P", "-m", "edge_agent.documents.verify", *pairs]
    try:
        done = subprocess.run(command, input=signed, capture_output=True, timeout=CHECK_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DocumentLaterError(f"the signature could not be checked: {error}; it is tried again") from error
    if done.returncode == EXIT_FORGED:
        raise UntrustedDocumentError("the signature is not of a trusted key")
    if done.returncode != EXIT_SIGNED:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DocumentLaterError(f"the signature could not be checked: {last_line[:300]}; it is tried again")
