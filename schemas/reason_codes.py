"""MQTT 5 reason codes in words: what a broker refuses, why, and what to do about it. No IO."""

FIRST_REFUSAL = 0x80
NO_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87
QUOTA_EXCEEDED = 0x97

_RIGHTS = "the broker's access rules do not grant it to this certificate's name; deploy/broker/acl has the rules of every role"
_LIMITS = "raise the broker's limit"
_WORDS = {
    0x80: ("unspecified error", "the broker's log says why"),
    0x83: ("implementation specific error", "the broker's log says why"),
    NOT_AUTHORIZED: ("not authorised", _RIGHTS),
    0x8F: ("topic filter invalid", "check the namespace in the configuration"),
    0x90: ("topic name invalid", "check the namespace in the configuration"),
    0x91: ("packet identifier in use", "it is sent again"),
    0x95: ("packet too large", f"{_LIMITS} (max_packet_size, message_size_limit)"),
    QUOTA_EXCEEDED: ("quota exceeded", f"{_LIMITS}, or wait: it is sent again"),
    0x99: ("payload format invalid", "the broker's log says why"),
    0x9A: ("retain not supported", "let the broker keep retained messages (retain_available true)"),
    0x9E: ("shared subscriptions not supported", "subscribe without $share"),
    0xA1: ("subscription identifiers not supported", "the broker's log says why"),
    0xA2: ("wildcard subscriptions not supported", "use a broker that allows wildcards in subscriptions"),
}


def is_refusal(code: int) -> bool:
    """Whether a reason code of a PUBACK or SUBACK refuses what it answers."""
    return code >= FIRST_REFUSAL


def describe_reason(code: int) -> str:
    """Explain a reason code and name the next step, as in `0x87 not authorised: ...`."""
    name, hint = _WORDS.get(code, ("refused", "the broker's log says why"))
    return f"0x{code:02x} {name}: {hint}"
