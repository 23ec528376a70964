"""Flows: a real exporter in three protocols, templates that come late, datagrams that are lost, and bytes that are none."""

import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects
from edge_agent.sources.netflow.export import (
    LOST,
    MALFORMED,
    NO_TEMPLATE,
    UNREADABLE,
    Export,
    Exporter,
    Template,
    recall,
    remember,
)
from edge_agent.sources.netflow.source import NetflowSource, build, flow_times
from edge_agent.sources.registry import check_source
from schemas.contract import builtin_contract
from tests.fakes.drained import rows

FLOWS = builtin_contract("network_flow")
SOFTFLOWD = shutil.which("softflowd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
START_S = int(time.time()) - 100


@pytest.fixture
def source() -> Iterator[NetflowSource]:
    made = build({"listen": "udp://127.0.0.1:0", "wait_ms": 50, "rename": {"exporter": "service"}}, FLOWS, SystemClock(), None)
    yield made
    made.close()


def send(source: NetflowSource, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for one in datagrams:
            out.sendto(one, ("127.0.0.1", source.port))


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty flows of two packets each, a second apart; every third by IPv6."""
    path = tmp_path_factory.mktemp("pcap") / "x.pcap"
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for at_s in (0, 1):
            for n in range(30):
                frame = _packet(n, at_s)
                file.write(struct.pack("<IIII", START_S + at_s, 0, len(frame), len(frame)) + frame)
    return path


def _packet(n: int, at_s: int) -> bytes:
    body = struct.pack(">HHHH", 1000 + n, 53, 108, 0) + bytes(100)
    if n % 3 == 0:
        addresses = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, f"2001:db8::{n:x}")
        return bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(body), 17, 64) + addresses + body
    addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton(f"10.0.1.{n}")
    return bytes(12) + b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), at_s, 0, 64, 17, 0) + addresses + body


@pytest.mark.skipif(SOFTFLOWD is None, reason="no softflowd (Debian: softflowd)")
@pytest.mark.parametrize(("version", "count"), [("5", 20), ("9", 30), ("10", 30)])
def test_a_real_exporter_is_understood(source: NetflowSource, capture: Path, tmp_path: Path, version: str, count: int) -> None:
    command = [str(SOFTFLOWD), "-r", str(capture), "-n", f"127.0.0.1:{source.port}", "-v", version, "-d"]
    subprocess.run([*command, "-p", str(tmp_path / "pid"), "-c", "none"], check=True, capture_output=True, timeout=60)
    found = rows(source, count)
    assert len(found) == count  # NetFlow 5 knows no IPv6
    assert source.rejected == {}
    for row in found:
        n = row["src_port"] - 1000
        assert row["src_ip"] == ("2001:db8::1" if n % 3 == 0 else "10.0.0.1")
        target = socket.inet_ntop(socket.AF_INET6, bytes.fromhex("20010db8" + f"{n:024x}"))
        assert row["dst_ip"] == (target if n % 3 == 0 else f"10.0.1.{n}")
        assert (row["dst_port"], row["proto"], row["orig_pkts"], row["service"]) == (53, "udp", 2, "127.0.0.1")
        assert row["orig_ip_bytes"] == 2 * (108 + (40 if n % 3 == 0 else 20))
        assert abs(row["duration_s"] - 1.0) < 0.01
        assert abs(row["t"] / 1e6 - START_S) < 2


def v9(sequence: int, *sets: bytes, at_s: int = 1_700_000_000, uptime_ms: int = 60_000) -> bytes:
    return struct.pack("!HHIIII", 9, len(sets), uptime_ms, at_s, sequence, 7) + b"".join(sets)


def one_set(id_: int, body: bytes) -> bytes:
    return struct.pack("!HH", id_, len(body) + 4) + body


TEMPLATE = one_set(0, struct.pack("!HHHHHHHHHH", 256, 4, 8, 4, 12, 4, 22, 4, 2, 4))
DATA = one_set(256, socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2") + struct.pack("!II", 50_000, 3))


def test_data_that_comes_before_its_template_waits_for_it(source: NetflowSource) -> None:
    send(source, v9(1, DATA), v9(2, DATA), v9(3, TEMPLATE, DATA))
    found = rows(source, 3)
    assert [row["orig_pkts"] for row in found] == [3, 3, 3]
    assert {row["t"] for row in found} == {(1_700_000_000 - 10) * 1_000_000}
    assert source.rejected == {}


def test_data_whose_template_never_comes_is_counted() -> None:
    rejects = Rejects("test")
    exporter = Exporter(rejects)
    for n in range(300):
        assert exporter.read(v9(n, DATA)) == []
    assert rejects.counts == {NO_TEMPLATE: 300 - 256}


def test_what_the_sequence_misses_is_counted(source: NetflowSource) -> None:
    send(source, v9(1, TEMPLATE, DATA), v9(2, DATA), v9(6, DATA), v9(5, DATA), v9(0, DATA))
    assert len(rows(source, 5)) == 5
    assert source.rejected[LOST] == 3


def test_each_exporter_has_templates_of_its_own() -> None:
    rejects = Rejects("test")
    first, second = Exporter(rejects), Exporter(rejects)
    first.read(v9(1, TEMPLATE))
    assert len(first.read(v9(2, DATA))) == 1
    assert second.read(v9(2, DATA)) == []


def ipfix(sequence: int, *sets: bytes, domain: int = 7) -> bytes:
    return struct.pack("!HHIII", 10, 16 + sum(map(len, sets)), 1_700_000_000, sequence, domain) + b"".join(sets)


IPFIX_TEMPLATE = one_set(2, TEMPLATE[4:])
THREE = one_set(256, DATA[4:] * 3)


def test_what_the_sequence_of_ipfix_misses_is_counted_in_records() -> None:
    rejects = Rejects("test")
    exporter = Exporter(rejects)
    exporter.read(ipfix(0, IPFIX_TEMPLATE, THREE))
    exporter.read(ipfix(3, IPFIX_TEMPLATE))  # templates are no data records
    exporter.read(ipfix(3, THREE))
    assert rejects.counts == {}
    exporter.read(ipfix(16, THREE))
    assert rejects.counts == {LOST: 10}


def test_a_template_that_is_replaced_within_a_datagram_does_not_reach_back() -> None:
    def template(*elements: int) -> bytes:
        return one_set(2, struct.pack("!HH", 256, len(elements)) + b"".join(struct.pack("!HH", id_, 4) for id_ in elements))

    data = one_set(256, bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    exports = Exporter(Rejects("test")).read(ipfix(0, data, template(8, 12), data, template(12, 8), data))
    sources = [record[8][3] for export in exports for record in export.records]
    assert sorted(sources) == [1, 2, 2]  # the first set had none before it: it is read by the last


def test_an_ipfix_datagram_that_cannot_be_counted_makes_no_loss_up() -> None:
    rejects = Rejects("test")
    exporter = Exporter(rejects)
    for datagram in (ipfix(0, IPFIX_TEMPLATE, THREE), ipfix(3, THREE, one_set(300, bytes(40))), ipfix(99, THREE)):
        exporter.read(datagram)
    assert rejects.counts == {}
    exporter.read(ipfix(103, THREE))
    assert rejects.counts == {LOST: 1}


def again(position: bytes | None, **options: object) -> NetflowSource:
    return build({"listen": "udp://127.0.0.1:0", "wait_ms": 50, **options}, FLOWS, SystemClock(), position)


def position_after(*datagrams: bytes, known: bytes | None = None) -> bytes | None:
    made = again(known)
    send(made, *datagrams)
    batch = None
    while batch is None:
        batch = made.read(1000)
    made.close()
    return batch.position


@pytest.mark.parametrize(
    ("templates", "data"), [(v9(1, TEMPLATE, DATA), v9(2, DATA)), (ipfix(0, IPFIX_TEMPLATE, THREE), ipfix(3, THREE))]
)
def test_templates_outlive_a_restart(templates: bytes, data: bytes) -> None:
    position = position_after(templates)
    made = again(position)
    send(made, data)
    assert {row["orig_pkts"] for row in rows(made, 1)} == {3}
    made.close()
    assert position_after(templates, known=position) is None  # as it was: nothing is written anew


def test_an_exporter_that_was_started_anew_meanwhile_is_not_read_by_its_old_templates() -> None:
    position = position_after(v9(1, TEMPLATE, DATA))
    other = one_set(0, struct.pack("!HHHHHHHHHH", 256, 4, 12, 4, 8, 4, 2, 4, 22, 4))
    made = again(position)
    send(made, v9(0, DATA, uptime_ms=1_000, at_s=1_700_000_900), v9(1, other, uptime_ms=1_100, at_s=1_700_000_900))
    assert [(row["src_ip"], row["orig_pkts"]) for row in rows(made, 1)] == [("10.0.0.2", 50_000)]
    made.close()


def test_a_kept_template_that_does_not_fit_waits_for_the_one_that_does() -> None:
    position = position_after(ipfix(0, IPFIX_TEMPLATE, THREE))
    made = again(position)
    longer = one_set(2, struct.pack("!HHHHHHHHHHHH", 256, 5, 8, 4, 12, 4, 22, 4, 2, 4, 4, 4))
    send(made, ipfix(0, one_set(256, DATA[4:] + bytes(4))), ipfix(1, longer))
    assert len(rows(made, 1)) == 1
    made.close()


def test_exporters_of_the_last_run_that_are_silent_make_way() -> None:
    position = position_after(ipfix(0, IPFIX_TEMPLATE, THREE, domain=1))
    made = again(position, max_exporters=1)
    send(made, ipfix(0, IPFIX_TEMPLATE, THREE, domain=2))
    assert len(rows(made, 3)) == 3
    assert made.rejected == {}
    made.close()


def test_templates_that_cannot_be_read_any_more_are_waited_for_and_reported() -> None:
    made = again(b"rotten")
    assert made.rejected == {UNREADABLE: 1}
    made.close()


@given(st.dictionaries(st.integers(256, 65535), st.lists(st.tuples(st.integers(0, 500), st.integers(1, 65535)), min_size=1)))
def test_any_templates_come_back_as_they_were(templates: dict[int, list[tuple[int, int]]]) -> None:
    exporter = Exporter(Rejects("test"))
    exporter.templates = {id_: Template(tuple(fields), is_options=False) for id_, fields in templates.items()}
    (kept,) = recall(remember({("10.0.0.1", b"\0\x0a"): exporter}), Rejects("test")).values()
    assert {id_: list(one.fields) for id_, one in kept.templates.items()} == templates


def test_too_many_exporters_are_refused(tmp_path: Path) -> None:
    made = build({"listen": "udp://127.0.0.1:0", "wait_ms": 50, "max_exporters": 1}, FLOWS, SystemClock(), None)
    other = bytearray(v9(1, TEMPLATE, DATA))
    other[19] = 8  # another source id
    send(made, v9(1, TEMPLATE, DATA), bytes(other))
    assert len(rows(made, 2, within_s=0.5)) == 1
    assert made.rejected == {"row: datagram of more than 1 exporters": 1}
    made.close()


def test_clocks_that_began_anew_do_not_move_a_flow() -> None:
    record = {22: struct.pack("!I", 0xFFFF_FF00), 21: struct.pack("!I", 100)}
    assert flow_times(record, Export((), 1_000_000, 200)) == (1_000_000 - 456, 1_000_000 - 100)


def test_variable_length_and_enterprise_elements_are_passed_over() -> None:
    fields = struct.pack("!HH", 256, 4) + struct.pack("!HH", 82, 0xFFFF) + struct.pack("!HHI", 0x8001, 4, 29305)
    fields += struct.pack("!HHHH", 8, 4, 12, 4)
    row = b"\x04eth0" + b"abcd" + socket.inet_aton("1.2.3.4") + socket.inet_aton("5.6.7.8")
    sets = one_set(2, fields) + one_set(256, row + b"\xff\x00\x02xy" + row[5:])
    data = struct.pack("!HHIII", 10, 16 + len(sets), 1_700_000_000, 0, 0) + sets
    (export,) = Exporter(Rejects("test")).read(data)
    assert [(record[82], socket.inet_ntoa(record[12])) for record in export.records] == [(b"eth0", "5.6.7.8"), (b"xy", "5.6.7.8")]


def test_what_is_no_export_is_counted(source: NetflowSource) -> None:
    send(source, b"", b"x", b"\0\5", v9(1)[:10], v9(1, one_set(0, b"")[:2] + b"\0\1"), b"\0\x0a" + bytes(20))
    assert rows(source, 1, within_s=0.5) == []
    assert source.rejected == {MALFORMED: 6}


SETS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 256, 257]), st.binary(max_size=60)), max_size=5)


@given(st.lists(st.tuples(st.sampled_from([5, 9, 10]), SETS, st.binary(max_size=20)), max_size=6))
def test_no_bytes_break_the_collector(datagrams: list[tuple[int, list[tuple[int, bytes]], bytes]]) -> None:
    exporter = Exporter(Rejects("test"))
    exporter.read(v9(1, TEMPLATE))
    for version, sets, tail in datagrams:
        body = b"".join(one_set(id_, raw) for id_, raw in sets) + tail
        head = struct.pack("!HH", version, len(body) + 16) + bytes(12 if version == 10 else 16)
        for export in exporter.read(head + body):
            for record in export.records:
                flow_times(record, export)


def test_wrong_options_are_reported_before_anything_starts() -> None:
    for options in ({}, {"listen": "tcp://127.0.0.1:2055"}, {"listen": "udp://127.0.0.1:2055", "max_exporters": 0}):
        with pytest.raises(ConfigError, match="netflow"):
            check_source("netflow", options, FLOWS)
