"""What a flow record counts, each way: packets, bytes of IP, bytes of payload. Pure.

Exporters tell what came back in three ways: by reverse elements (RFC 5103), by the responder's elements (Cisco NSEL and
others), and, in NetFlow 9, by OUT_BYTES and OUT_PKTS beside IN_BYTES and IN_PKTS (Meraki). OUT_BYTES alone, as an egress
monitor tells it, is of the flow's own direction; in IPFIX these two numbers are never what came back.
"""

from edge_agent.sources.netflow.export import REVERSE, Record

FLOW_COUNTS = ("orig_pkts", "orig_ip_bytes", "orig_bytes", "resp_pkts", "resp_ip_bytes", "resp_bytes")
_PACKETS, _IP_BYTES = (2, 86), (1, 85)
_OUT_BYTES, _OUT_PACKETS = 23, 24
# Initiator's and responder's payload.
_ORIG_PACKETS, _ORIG_PAYLOAD, _RESP_PACKETS, _RESP_PAYLOAD = 298, 231, 299, 232
_V9 = 9

Counts = tuple[int | None, ...]


def flow_counts(record: Record, version: int) -> Counts:
    """The counts, in the order of `FLOW_COUNTS`; None where the exporter does not tell.

    Where it tells bytes of payload alone, they stand for bytes of IP, too.

    Args:
        record: the flow.
        version: of the protocol.
    """
    packets, ip_bytes = first_number(record, *_PACKETS), first_number(record, *_IP_BYTES)
    out_packets, out_bytes = first_number(record, _OUT_PACKETS), first_number(record, _OUT_BYTES)
    back_packets = first_number(record, *(REVERSE | id_ for id_ in _PACKETS), _RESP_PACKETS)
    back_bytes = first_number(record, *(REVERSE | id_ for id_ in _IP_BYTES))
    if version == _V9 and packets is not None and back_packets is None:
        back_packets = out_packets
    if version == _V9 and ip_bytes is not None and back_bytes is None:
        back_bytes = out_bytes
    orig_payload, resp_payload = first_number(record, _ORIG_PAYLOAD), first_number(record, _RESP_PAYLOAD)
    return (
        _known(packets, first_number(record, _ORIG_PACKETS), out_packets),
        _known(ip_bytes, orig_payload, out_bytes),
        orig_payload,
        back_packets,
        _known(back_bytes, resp_payload),
        resp_payload,
    )


def swapped(counts: Counts) -> Counts:
    """The counts of a record whose source is the responder."""
    half = len(FLOW_COUNTS) // 2
    return (*counts[half:], *counts[:half])


def first_number(record: Record, *ids: int) -> int | None:
    """The first of some elements that the record holds as a number."""
    for id_ in ids:
        raw = record.get(id_)
        if raw is not None and 0 < len(raw) <= 8:
            return int.from_bytes(raw, "big")
    return None


def _known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
