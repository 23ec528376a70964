"""Identifiers of J1939 and NMEA 2000: which message a 29-bit id names, apart from its priority and who sends it. Pure.

Source: SAE J1939-21, 5.2: priority (3 bits), extended data page, data page, PDU format (8), PDU specific (8), source address (8).
"""

# A database names messages with this address: nobody sends with it (SAE J1939-81, the null address).
NULL_ADDRESS = 0xFE
_FIRST_BROADCAST_FORMAT = 0xF0


def group_number(can_id: int) -> int:
    """The parameter group number (PGN) of an extended id. Below PDU format 240 the PDU specific byte is who it is for."""
    pdu_format = can_id >> 16 & 0xFF
    pages_and_format = can_id >> 8 & 0x3FF00
    return pages_and_format if pdu_format < _FIRST_BROADCAST_FORMAT else pages_and_format | (can_id >> 8 & 0xFF)


def source_address(can_id: int) -> int:
    """Who sends it."""
    return can_id & 0xFF


def group_mask(can_id: int) -> int:
    """The bits of an id that its group number is made of, for a kernel filter."""
    return 0x03FF_0000 if (can_id >> 16 & 0xFF) < _FIRST_BROADCAST_FORMAT else 0x03FF_FF00
