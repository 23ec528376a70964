"""Checks one signature and ends: `python -m edge_agent.rules.verify <public key> <signature> < text`.

A process of its own, because what it loads would stay in the agent's memory for months, and a policy comes once a week.
The key and the check are the models' own: securesystemslib's, with or without `cryptography`.
"""

import sys

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey  # type: ignore[attr-defined]  # exported, but not in __all__

from edge_agent.rules.verify_codes import EXIT_FORGED, EXIT_SIGNED
from schemas.edge_policy import MAX_EDGE_POLICY_BYTES, signing_bytes

_KEY_TYPE = "ed25519"


def is_signed(public_key: str, signature: str, text: str) -> bool:
    """Whether the owner of the key signed this text as an edge policy."""
    key = SSlibKey("policy", _KEY_TYPE, _KEY_TYPE, {"public": public_key})
    try:
        key.verify_signature(Signature("policy", signature), signing_bytes(text))
    except UnverifiedSignatureError:
        return False
    return True


def main() -> int:
    """The exit code: signed, or forged."""
    _, public_key, signature = sys.argv
    text = sys.stdin.buffer.read(MAX_EDGE_POLICY_BYTES).decode()
    return EXIT_SIGNED if is_signed(public_key, signature, text) else EXIT_FORGED


if __name__ == "__main__":
    sys.exit(main())
