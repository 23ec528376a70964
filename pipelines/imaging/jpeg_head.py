"""The size that a JPEG claims, read from its markers alone: a decoder believes it, and takes the memory for it."""

_START_OF_SCAN = 0xDA
_FRAME_HEADS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def jpeg_size(body: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header; None where there is none before the picture's data begins."""
    at = 2
    while at + 4 <= len(body) and body[at] == 0xFF:
        marker = body[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return None
        if marker in _FRAME_HEADS:
            head = body[at + 5 : at + 9]
            return (int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")) if len(head) == 4 else None
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None
