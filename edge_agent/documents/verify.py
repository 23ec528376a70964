"""Checks signatures and ends: `python -m edge_agent.documents.verify <public key>:<signature> … < signed bytes`.

A process of its own, because what it loads would stay in the agent's memory for months, and a document comes once a week.
The key and the check are the models' own: securesystemslib's, with or without `cryptography`.
"""

import sys

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from edge_agent.documents.signature import EXIT_FORGED, EXIT_SIGNED

_KEY_TYPE = "ed25519"
_MAX_SIGNED_BYTES = 2 * 1024 * 1024


def is_signed(public_key: str, signature: str, signed: bytes) -> bool:
    """Whether the owner of the key signed these bytes."""
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
