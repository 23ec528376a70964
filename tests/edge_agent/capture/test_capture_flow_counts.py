"""Flows: how many packets a counted one stands for, what came back, and which elements fill no column."""

import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects
from edge_agent.sources.netflow.export import Exporter, recall, remember
from edge_agent.sources.netflow.sampling import Sampling
from edge_agent.sources.netflow.source import NetflowSource, build
from edge_agent.sources.registry import check_source
from schemas.contract import builtin_contract
from tests.fakes.drained import rows
from tests.plant.present import present

FLOWS = builtin_contract("network_flow")
HERE, THERE = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
REVERSE, MERAKI = 29305, 29671
COUNTS = ("orig_pkts", "orig_ip_bytes", "orig_bytes", "resp_pkts", "resp_ip_bytes", "resp_bytes")
Field = tuple[int, int] | tuple[int, int, int]  # element, length, enterprise


def collector(position: bytes | None = None, **options: object) -> NetflowSource:
    return build({"listen": "udp://127.0.0.1:0", "wait_ms": 50, **options}, FLOWS, SystemClock(), position)


@pytest.fixture
def source() -> Iterator[NetflowSource]:
    made = collector()
    yield made
    made.close()


def send(source: NetflowSource, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for one in datagrams:
            out.sendto(one, ("127.0.0.1", source.port))


def one_set(id_: int, body: bytes) -> bytes:
    return struct.pack("!HH", id_, len(body) + 4) + body


def v5(interval: int, *counts: tuple[int, int]) -> bytes:
    head = struct.pack("!HHIIIIBBH", 5, len(counts), 60_000, 1_700_000_000, 0, 0, 0, 0, interval)
    body = b"".join(
        struct.pack(
            "!4s4s4sHHIIIIHHBBBBHHBBH", HERE, THERE, bytes(4), 1, 2, packets, octets, 1, 2, 53, 54, 0, 0, 17, 0, 0, 0, 0, 0, 0
        )
        for packets, octets in counts
    )
    return head + body


def v9(*sets: bytes, sequence: int = 0) -> bytes:
    return struct.pack("!HHIIII", 9, len(sets), 60_000, 1_700_000_000, sequence, 7) + b"".join(sets)


def ipfix(*sets: bytes, sequence: int = 0) -> bytes:
    return struct.pack("!HHIII", 10, 16 + sum(map(len, sets)), 1_700_000_000, sequence, 7) + b"".join(sets)


def specs(fields: tuple[Field, ...]) -> bytes:
    return b"".join(
        struct.pack("!HHI", field[0] | 0x8000, field[1], field[2]) if len(field) == 3 else struct.pack("!HH", *field)
        for field in fields
    )


def template(id_: int, *fields: Field, is_ipfix: bool = False) -> bytes:
    return one_set(2 if is_ipfix else 0, struct.pack("!HH", id_, len(fields)) + specs(fields))


def v9_options(id_: int, scopes: tuple[Field, ...], *fields: Field) -> bytes:
    return one_set(1, struct.pack("!HHH", id_, len(scopes) * 4, len(fields) * 4) + specs((*scopes, *fields)))


def ipfix_options(id_: int, scopes: tuple[Field, ...], *fields: Field) -> bytes:
    return one_set(3, struct.pack("!HHH", id_, len(scopes) + len(fields), len(scopes)) + specs((*scopes, *fields)))


ENDS = ((8, 4), (12, 4))
ADDRESSES = HERE + THERE


def counts(row: dict[str, object]) -> dict[str, object]:
    return {name: row[name] for name in COUNTS if row[name] is not None}


# -- sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "rate"), [(0, None), (1, 1), (100, 100), (0x4000 | 100, 100), (0x8000 | 16_383, 16_383)])
def test_the_head_of_netflow_5_tells_the_sampling_rate(source: NetflowSource, interval: int, rate: int | None) -> None:
    send(source, v5(interval, (10, 1_000), (1, 60)))
    found = rows(source, 2)
    assert [(row["sampling_rate"], row["orig_pkts"]) for row in found] == [(rate, 10), (rate, 1)]
    assert {row["is_scaled"] for row in found} == {None if rate is None else False}


def test_counts_are_scaled_on_request_and_say_so() -> None:
    made = collector(scale=True)
    send(made, v5(100, (10, 1_000)), v5(1, (10, 1_000)), v5(0, (10, 1_000)))
    found = rows(made, 3)
    made.close()
    assert [(row["orig_pkts"], row["orig_ip_bytes"], row["is_scaled"]) for row in found] == [
        (1_000, 100_000, True),
        (10, 1_000, False),
        (10, 1_000, None),
    ]


def test_exporters_that_tell_no_rate_have_the_configured_one() -> None:
    made = collector(sampling_rate=50, scale=True)
    send(made, v5(0, (10, 1_000)), v5(100, (10, 1_000)))
    found = rows(made, 2)
    made.close()
    assert [(row["sampling_rate"], row["orig_pkts"]) for row in found] == [(50, 500), (100, 1_000)]


FLOW = template(256, *ENDS, (2, 4), (1, 4))
DATA = one_set(256, ADDRESSES + struct.pack("!II", 10, 1_000))
SAMPLED_FLOW = template(258, *ENDS, (2, 4), (48, 2))
INTERFACE_FLOW = template(259, *ENDS, (2, 4), (10, 4))


@pytest.mark.parametrize(
    ("options", "declared", "rate"),
    [
        (v9_options(257, ((1, 4),), (34, 4), (35, 1)), struct.pack("!IIB", 0, 512, 2), 512),
        (v9_options(257, ((1, 4),), (48, 1), (49, 1), (50, 4)), struct.pack("!IBBI", 0, 3, 2, 64), 64),
        (v9_options(257, ((1, 4),), (305, 4), (306, 4)), struct.pack("!III", 0, 2, 198), 100),
        (v9_options(257, ((1, 4),), (309, 4), (310, 4)), struct.pack("!III", 0, 1, 40), 40),
        (v9_options(257, ((1, 4),), (311, 8)), struct.pack("!Id", 0, 0.01), 100),
        (v9_options(257, ((1, 4),), (34, 4)), struct.pack("!II", 0, 0), None),
        (v9_options(257, ((1, 4),), (36, 4)), struct.pack("!II", 0, 60), None),
    ],
    ids=["interval", "sampler", "count and space", "size of population", "probability", "none", "nothing of it"],
)
def test_options_of_netflow_9_tell_the_sampling_rate(
    source: NetflowSource, options: bytes, declared: bytes, rate: int | None
) -> None:
    send(source, v9(FLOW, DATA), v9(DATA, options, one_set(257, declared), sequence=1), v9(DATA, sequence=2))
    found = rows(source, 3)
    # What stands in one datagram with the flow holds for it already.
    assert [row["sampling_rate"] for row in found] == [None, rate, rate]


def test_the_rate_is_of_the_sampler_that_the_flow_names(source: NetflowSource) -> None:
    samplers = v9_options(257, ((1, 4),), (48, 2), (50, 4))
    declared = one_set(257, struct.pack("!IHI", 0, 1, 100) + struct.pack("!IHI", 0, 2, 2_000))
    flows = one_set(258, b"".join(ADDRESSES + struct.pack("!IH", 1, sampler) for sampler in (2, 1, 9)))
    send(source, v9(samplers, declared, SAMPLED_FLOW, flows, FLOW, DATA))
    assert [row["sampling_rate"] for row in rows(source, 4)] == [2_000, 100, None, None]


def test_the_rate_is_of_the_interface_that_the_flow_came_in_by(source: NetflowSource) -> None:
    interfaces = v9_options(257, ((2, 4),), (34, 4))
    declared = one_set(257, struct.pack("!IIII", 5, 100, 6, 200))
    flows = one_set(259, b"".join(ADDRESSES + struct.pack("!II", 1, interface) for interface in (6, 5, 7)))
    send(source, v9(interfaces, declared, INTERFACE_FLOW, flows))
    assert [row["sampling_rate"] for row in rows(source, 3)] == [200, 100, None]


def test_a_rate_in_the_flow_itself_counts_before_all_others(source: NetflowSource) -> None:
    own = template(260, *ENDS, (2, 4), (34, 4), (48, 2))
    flows = one_set(260, ADDRESSES + struct.pack("!IIH", 1, 7, 1) + ADDRESSES + struct.pack("!IIH", 1, 0, 1))
    samplers = v9_options(257, ((1, 4),), (48, 2), (50, 4))
    send(source, v9(samplers, one_set(257, struct.pack("!IHI", 0, 1, 100)), own, flows))
    assert [row["sampling_rate"] for row in rows(source, 2)] == [7, 100]


def test_options_of_ipfix_tell_the_rate_of_a_selector(source: NetflowSource) -> None:
    selectors = ipfix_options(257, ((302, 4),), (304, 2), (305, 4), (306, 4))
    declared = one_set(257, struct.pack("!IHII", 1, 1, 1, 999))
    flow = template(256, *ENDS, (2, 4), (302, 4), is_ipfix=True)
    send(source, ipfix(selectors, declared, flow, one_set(256, ADDRESSES + struct.pack("!II", 10, 1))))
    assert [row["sampling_rate"] for row in rows(source, 1)] == [1_000]


def test_sampling_that_is_switched_off_is_no_longer_reported(source: NetflowSource) -> None:
    options = v9_options(257, ((1, 4),), (34, 4))
    on, off = (one_set(257, struct.pack("!II", 0, rate)) for rate in (100, 0))
    send(source, v9(options, on, FLOW, DATA), v9(off, DATA, sequence=1))
    assert [row["sampling_rate"] for row in rows(source, 2)] == [100, None]


def test_sampling_rates_outlive_a_restart_and_a_file_without_them_is_read() -> None:
    first = collector()
    options = v9_options(257, ((1, 4),), (34, 4))
    send(first, v9(options, one_set(257, struct.pack("!II", 0, 100)), FLOW, DATA))
    batch = None
    while batch is None:
        batch = first.read(1_000)
    first.close()
    again = collector(batch.position)
    send(again, v9(DATA, sequence=1))
    assert [row["sampling_rate"] for row in rows(again, 1)] == [100]
    again.close()
    before = msgspec.msgpack.encode([one[:5] for one in msgspec.msgpack.decode(present(batch.position))])
    (exporter,) = recall(before, Rejects("test")).values()
    assert exporter.sampling == Sampling()
    assert set(exporter.templates) == {256, 257}


@given(
    st.one_of(st.none(), st.floats(1, 1e9)), st.dictionaries(st.integers(0, 2**32), st.floats(1, 1e9), max_size=5),
    st.dictionaries(st.integers(0, 2**32), st.floats(1, 1e9), max_size=5),
)  # fmt: skip
def test_any_sampling_comes_back_as_it_was(
    overall: float | None, samplers: dict[int, float], interfaces: dict[int, float]
) -> None:
    exporter = Exporter(Rejects("test"), sampling=Sampling(overall, samplers, interfaces))
    (kept,) = recall(remember({("10.0.0.1", b"\0\x0a"): exporter}), Rejects("test")).values()
    assert kept.sampling == exporter.sampling


@given(st.dictionaries(st.sampled_from([34, 48, 50, 302, 305, 306, 309, 310, 311, 10, -2]), st.binary(max_size=9)))
def test_no_options_record_breaks_the_collector_or_tells_a_rate_below_one(options: dict[int, bytes]) -> None:
    sampling = Sampling()
    for _ in range(2):
        sampling.learn(options)
    rate = sampling.rate(options)
    assert rate is None or 1 <= rate <= 2**32


def test_an_exporter_cannot_fill_the_memory_with_samplers() -> None:
    sampling = Sampling()
    for number in range(1_000):
        sampling.learn({48: number.to_bytes(4, "big"), 50: b"\x0a"})
    assert len(sampling.samplers) == 256
    assert sampling.learn({48: b"\0", 50: b"\x0b"})  # one that is known may change


# -- what came back -------------------------------------------------------------------------------------------------------


def test_reverse_elements_fill_the_responders_counts(source: NetflowSource) -> None:
    fields = ((2, 8), (1, 8), (2, 8, REVERSE), (1, 8, REVERSE), (6, 1, REVERSE))
    flow = template(256, *ENDS, *fields, is_ipfix=True)
    send(source, ipfix(flow, one_set(256, ADDRESSES + struct.pack("!QQQQB", 10, 1_000, 20, 30_000, 2))))
    (row,) = rows(source, 1)
    assert counts(row) == {"orig_pkts": 10, "orig_ip_bytes": 1_000, "resp_pkts": 20, "resp_ip_bytes": 30_000}
    assert source.rejected == {}


def test_reverse_totals_fill_them_too_and_are_scaled() -> None:
    made = collector(scale=True, sampling_rate=10)
    flow = template(256, *ENDS, (86, 4), (85, 4), (86, 4, REVERSE), (85, 4, REVERSE), is_ipfix=True)
    send(made, ipfix(flow, one_set(256, ADDRESSES + struct.pack("!IIII", 1, 60, 2, 80))))
    (row,) = rows(made, 1)
    made.close()
    assert counts(row) == {"orig_pkts": 10, "orig_ip_bytes": 600, "resp_pkts": 20, "resp_ip_bytes": 800}


def test_a_flow_whose_source_answered_is_turned_round(source: NetflowSource) -> None:
    fields = ((7, 2), (11, 2), (2, 4), (1, 4), (2, 4, REVERSE), (1, 4, REVERSE), (239, 1))
    flow = template(256, *ENDS, *fields, is_ipfix=True)
    body = b"".join(ADDRESSES + struct.pack("!HHIIIIB", 80, 5_000, 1, 60, 2, 80, direction) for direction in (1, 2))
    send(source, ipfix(flow, one_set(256, body)))
    as_sent, note_loop = rows(source, 2)
    assert (as_sent["src_ip"], as_sent["src_port"], as_sent["orig_pkts"], as_sent["resp_ip_bytes"]) == ("10.0.0.1", 80, 1, 80)
    assert (note_loop["src_ip"], note_loop["src_port"], note_loop["dst_port"]) == ("10.0.0.2", 5_000, 80)
    assert counts(note_loop) == {"orig_pkts": 2, "orig_ip_bytes": 80, "resp_pkts": 1, "resp_ip_bytes": 60}


def test_cisco_nsel_tells_both_ways_and_when_it_ended(source: NetflowSource) -> None:
    fields = ((148, 4), (7, 2), (11, 2), (4, 1), (233, 1), (323, 8), (152, 8), (231, 4), (232, 4), (33_000, 12), (40_000, 20))
    start_ms = 1_700_000_000_000
    body = ADDRESSES + struct.pack("!IHHBBQQII", 9, 5_000, 443, 6, 2, start_ms + 2_500, start_ms, 700, 90_000) + bytes(32)
    send(source, v9(template(263, *ENDS, *fields), one_set(263, body)))
    (row,) = rows(source, 1)
    assert (row["orig_bytes"], row["resp_bytes"], row["orig_ip_bytes"], row["resp_ip_bytes"]) == (700, 90_000, 700, 90_000)
    assert (row["t"], row["duration_s"], row["proto"]) == (start_ms * 1_000, 2.5, "tcp")
    assert source.rejected == {"cell: element 33000 fills no column": 1, "cell: element 40000 fills no column": 1}


def test_initiator_and_responder_packets_fill_both_ways(source: NetflowSource) -> None:
    flow = template(256, *ENDS, (298, 8), (299, 8), (231, 8), (232, 8), is_ipfix=True)
    send(source, ipfix(flow, one_set(256, ADDRESSES + struct.pack("!QQQQ", 3, 4, 500, 600))))
    (row,) = rows(source, 1)
    assert (row["orig_pkts"], row["resp_pkts"], row["orig_bytes"], row["resp_bytes"]) == (3, 4, 500, 600)


def test_meraki_tells_what_came_back_as_what_went_out(source: NetflowSource) -> None:
    flow = template(256, *ENDS, (1, 4), (2, 4), (23, 4), (24, 4))
    send(source, v9(flow, one_set(256, ADDRESSES + struct.pack("!IIII", 1_000, 10, 30_000, 20))))
    (row,) = rows(source, 1)
    assert counts(row) == {"orig_pkts": 10, "orig_ip_bytes": 1_000, "resp_pkts": 20, "resp_ip_bytes": 30_000}


def test_an_egress_monitor_and_a_middlebox_of_ipfix_tell_nothing_of_what_came_back(source: NetflowSource) -> None:
    egress = template(256, *ENDS, (23, 4), (24, 4))
    send(source, v9(egress, one_set(256, ADDRESSES + struct.pack("!II", 1_000, 10))))
    after = template(256, *ENDS, (1, 4), (2, 4), (23, 4), (24, 4), is_ipfix=True)
    send(source, ipfix(after, one_set(256, ADDRESSES + struct.pack("!IIII", 1_000, 10, 990, 10))))
    found = rows(source, 2)
    assert [counts(row) for row in found] == [{"orig_pkts": 10, "orig_ip_bytes": 1_000}] * 2


# -- what fills no column -------------------------------------------------------------------------------------------------


def test_elements_that_we_do_not_know_are_counted_by_record(source: NetflowSource) -> None:
    fields = ((2, 4), (5, 1), (7, 2, MERAKI), (700, 1), (99, 1, REVERSE), (1_001, 4, REVERSE))
    flow = template(256, *ENDS, *fields, is_ipfix=True)
    body = (ADDRESSES + struct.pack("!IBHBBI", 1, 0, 2, 3, 4, 5)) * 3
    send(source, ipfix(flow, one_set(256, body)))
    assert len(rows(source, 3)) == 3
    assert source.rejected == {
        f"cell: element {MERAKI}/7 fills no column": 3,
        "cell: element 700 fills no column": 3,
        f"cell: element {REVERSE}/1001 fills no column": 3,
    }


def test_unknown_elements_are_counted_under_few_names(source: NetflowSource) -> None:
    strange = tuple((number, 1, 9) for number in range(200))
    flow = template(256, *ENDS, *strange, is_ipfix=True)
    send(source, ipfix(flow, one_set(256, ADDRESSES + bytes(200))))
    assert len(rows(source, 1)) == 1
    assert len(source.rejected) == 65
    assert source.rejected["cell: element of others fills no column"] == 1


def test_scopes_of_options_are_taken_for_no_elements() -> None:
    exporter = Exporter(Rejects("test"))
    exporter.read(v9(v9_options(257, ((1, 4), (2, 4)), (34, 4)), one_set(257, struct.pack("!III", 99, 5, 100))))
    assert exporter.templates[257].fields == ((-1, 4), (-2, 4), (34, 4))
    assert exporter.sampling == Sampling(interfaces={5: 100.0})


@pytest.mark.parametrize("wrong", [{"sampling_rate": -1}, {"sampling_rate": 2**33}, {"scale": 1}])
def test_wrong_options_are_reported_before_anything_starts(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="netflow"):
        check_source("netflow", {"listen": "udp://127.0.0.1:2055", **wrong}, FLOWS)
