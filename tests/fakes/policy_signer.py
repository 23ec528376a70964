"""Signs edge policies as the core does, with a key of the test's own."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.expressions.expression import compile_expression, rule_columns
from schemas.contract import builtin_contract
from schemas.edge_policy import (
    EdgeAction,
    EdgePolicy,
    EdgeRule,
    SignedEdgePolicy,
    encode_edge_policy,
    encode_signed_edge_policy,
    signing_bytes,
)
from schemas.ids import StreamName


class PolicySigner:
    """Holds a key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw().hex()

    def sign(self, policy: EdgePolicy) -> bytes:
        """The message to publish."""
        text = encode_edge_policy(policy)
        return encode_signed_edge_policy(SignedEdgePolicy(text, self._key.sign(signing_bytes(text)).hex()))


def rule(name: str, stream: str, when: str, action: EdgeAction, **more: Any) -> EdgeRule:
    """A rule as the core compiles it."""
    compiled = compile_expression(when, rule_columns(builtin_contract(StreamName(stream)))).to_edge()
    return EdgeRule(name, compiled.sql, action, compiled.parameters, columns=compiled.columns, **more)
