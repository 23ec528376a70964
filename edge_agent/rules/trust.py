"""Whether a policy may be applied here: signed by the key this device trusts, meant for it, and not older than its own."""

import subprocess
import sys

from edge_agent.errors import PolicyError, UntrustedPolicyError
from edge_agent.rules.verify_codes import EXIT_FORGED, EXIT_SIGNED
from schemas.edge_policy import EdgePolicy, SignedEdgePolicy, decode_edge_policy, decode_signed_edge_policy
from schemas.errors import PolicyDocumentError

_CHECK_WITHIN_S = 60.0


def admit(body: bytes, *, public_key: str, device: str, known_version: int, seen_version: int = 0) -> EdgePolicy:
    """The policy in a message, if this device may apply it.

    Args:
        body: the message.
        public_key: raw Ed25519 key, 64 hexadecimal digits.
        device: this device.
        known_version: of the policy in force, 0 for none.
        seen_version: the highest this device ever believed. That one itself may come again: its file may have rotted.

    Raises:
        UntrustedPolicyError: forged, malformed, older, or for other devices.
        PolicyError: it could not be checked now; try again later.
    """
    try:
        signed = decode_signed_edge_policy(body)
        policy = decode_edge_policy(signed.policy)
    except PolicyDocumentError as error:
        raise UntrustedPolicyError(str(error)) from error
    # What costs nothing to refuse is refused before the signature is looked at; nothing is believed before it was.
    if policy.version <= known_version:
        raise UntrustedPolicyError(f"version {policy.version} is not newer than version {known_version}, which is in force")
    if policy.version < seen_version:
        raise UntrustedPolicyError(
            f"version {policy.version} is not newer than version {seen_version}, which was in force before"
        )
    if policy.devices and device not in policy.devices:
        raise UntrustedPolicyError(f"version {policy.version} is for other devices")
    check_signature(signed, public_key)
    return policy


def check_signature(signed: SignedEdgePolicy, public_key: str) -> None:
    """Check a signature in a process that ends with it.

    Raises:
        UntrustedPolicyError: the key did not sign this.
        PolicyError: the check could not be made.
    """
    command = [sys.executable, "-P", "-m", "edge_agent.rules.verify", public_key, signed.signature]
    try:
        done = subprocess.run(command, input=signed.policy.encode(), capture_output=True, timeout=_CHECK_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PolicyError(f"the policy's signature could not be checked: {error}; it is tried again") from error
    if done.returncode == EXIT_FORGED:
        raise UntrustedPolicyError("the signature is not of the trusted key in [policy] public_key")
    if done.returncode != EXIT_SIGNED:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise PolicyError(f"the policy's signature could not be checked: {said[:300]}; it is tried again")
