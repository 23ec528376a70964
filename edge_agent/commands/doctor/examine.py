"""Examine a device in the order in which things must work: configuration, disk, clock, certificate, broker, sources, orders.

A TLS handshake of the device with itself, in memory, is judged by the library that judges the real one.
"""

import datetime as dt
import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock, SystemClock
from edge_agent.checking import check_file
from edge_agent.clock_quality import kernel_says_synchronised
from edge_agent.commands.doctor.broker import ANSWER_WITHIN_S, RIGHTS, examine_reach, examine_rights
from edge_agent.commands.doctor.findings import CheckResult, Diagnosis, Finding, failed, good, skipped, warning
from edge_agent.commands.status_reader import is_alive
from edge_agent.config import AgentConfig, BrokerConfig, TlsConfig, load_agent_config
from edge_agent.errors import AgentError, ConfigError, KeyEncryptedError
from edge_agent.health.file import Health, read_health
from edge_agent.identity import read_certificate, refuse_password
from schemas.ids import is_role_name

CERTIFICATE = "certificate"
_BY_SYSTEMD = "systemd hands it to the agent alone, so run this as root with a file that names /etc/catchment/device.key"
_SOON = dt.timedelta(days=30)
_NEW_ONE = "edge-agent enrol makes a new request; have it signed (docs/operator/install.md, Who a device is)"
_RENAME = "give the device another name: edge-agent enrol NAME, and have that signed"
_EXPIRED, _NOT_YET, _PURPOSE = 10, 9, 26  # OpenSSL's own numbers


def examine_certificate(broker: BrokerConfig, clock: Clock) -> Iterator[Finding]:
    """Look at the three files of [broker.tls]."""
    if broker.tls is None:
        yield skipped(CERTIFICATE, "no [broker.tls]: the broker is on this machine")
        return
    missing = [failed(CERTIFICATE, f"{path}: {reason}", fix) for path, reason, fix in _unreadable(broker.tls)]
    if missing:
        yield from missing
        return
    yield from _dates(broker.tls, clock)
    yield from _key_mode(broker.tls)
    yield _proof(broker.tls)


def _unreadable(tls: TlsConfig) -> Iterator[tuple[str, str, str]]:
    fixes = {
        "ca": "bring the certificate of who signs certificates",
        "cert": _NEW_ONE,
        "key": f"edge-agent enrol makes it; {_BY_SYSTEMD}",
    }
    for name, fix in fixes.items():
        path = getattr(tls, name)
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            yield str(path), str(error.strerror), fix


def _dates(tls: TlsConfig, clock: Clock) -> Iterator[Finding]:
    try:
        found = read_certificate(tls.cert)
    except (ConfigError, OSError) as error:
        yield failed(CERTIFICATE, str(error), _NEW_ONE)
        return
    now = dt.datetime.fromtimestamp(clock.now_ms() / 1000, tz=dt.UTC)
    if is_role_name(found.device):
        yield warning(CERTIFICATE, f"its name {found.device} is one of the core's own and has the core's rights", _RENAME)
    summary = f"{found.device}, signed by {found.issuer}, holds until {found.not_after:%Y-%m-%d}"
    if now > found.not_after:
        yield failed(CERTIFICATE, f"{summary}: expired", f"samples are kept meanwhile; {_NEW_ONE}")
    elif now < found.not_before:
        yield failed(
            CERTIFICATE,
            f"{summary}, but only from {found.not_before:%Y-%m-%d} on",
            "set the clock; if it is right, ask for another",
        )
    elif found.not_after - now < _SOON:
        yield warning(CERTIFICATE, f"{summary}: in {(found.not_after - now).days} days", _NEW_ONE)
    else:
        yield good(CERTIFICATE, summary)


def _key_mode(tls: TlsConfig) -> Iterator[Finding]:
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    if mode & 0o077:
        yield warning(CERTIFICATE, f"others can read the key {tls.key} (mode {mode:04o})", f"chmod 600 {tls.key}")


def _proof(tls: TlsConfig) -> Finding:
    try:
        judge, device = _contexts(tls)
    except KeyEncryptedError as error:
        message, _, fix = str(error).partition("; ")
        return failed(CERTIFICATE, f"{tls.key}: {message}", fix)
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return failed(
                CERTIFICATE,
                f"the key {tls.key} does not belong to {tls.cert}",
                "bring the certificate made for this key's request",
            )
        return failed(
            CERTIFICATE,
            f"a file of [broker.tls] is not what it should be: {error}",
            "all three are PEM files; ca holds certificates",
        )
    try:
        _shake_hands(judge, device)
    except ssl.SSLCertVerificationError as error:
        return failed(
            CERTIFICATE, f"{tls.ca} does not vouch for {tls.cert}: {error.verify_message}", _verify_fix(error.verify_code)
        )
    except ssl.SSLError as error:
        return failed(CERTIFICATE, f"key and certificate do not make a TLS 1.3 handshake: {error}", _NEW_ONE)
    return good(CERTIFICATE, "the key belongs to it and the authority vouches for it")


def _verify_fix(code: int) -> str:
    if code == _EXPIRED:
        return f"if the clock is right: {_NEW_ONE}"
    if code == _NOT_YET:
        return "set the clock"
    if code == _PURPOSE:
        return "it was signed for servers; have it signed with the extension clientAuth"
    return "bring the certificate of the authority that signed it, or have it signed by the one named in ca"


def _contexts(tls: TlsConfig) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    judge.load_cert_chain(tls.cert, tls.key, refuse_password)
    judge.load_verify_locations(tls.ca)
    judge.verify_mode = ssl.CERT_REQUIRED
    device = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It talks to itself: only the judge judges.
    device.check_hostname = False
    device.verify_mode = ssl.CERT_NONE
    device.load_cert_chain(tls.cert, tls.key, refuse_password)
    for context in (judge, device):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return judge, device


def _shake_hands(judge: ssl.SSLContext, device: ssl.SSLContext) -> None:
    """Both sides in turn until both are content.

    Raises:
        ssl.SSLError: one is not.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [device.wrap_bio(down, up), judge.wrap_bio(up, down, server_side=True)]
    for _ in range(8):
        for side in tuple(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not end")


CONFIGURATION = "configuration"
SOURCES = "sources"


def diagnose(
    path: Path, *, is_probing: bool = False, clock: Clock | None = None, answer_within_s: float = ANSWER_WITHIN_S
) -> Diagnosis:
    """Examine a device.

    Args:
        path: the agent's configuration.
        is_probing: connect as the device even while its agent is connected, which interrupts that for a moment.
        clock: wall and monotonic time.
        answer_within_s: how long the broker and the core may take for an answer.
    """
    clock = clock or SystemClock()
    findings = list(_configuration(path))
    try:
        config = load_agent_config(path)
    except ConfigError as error:
        known = findings or [failed(CONFIGURATION, str(error), "correct it; edge-agent check shows what is left")]
        return Diagnosis("", tuple(known))
    findings = findings or [good(CONFIGURATION, f"{path} is right")]
    findings += [*examine_disk(config), examine_clock(clock), *examine_certificate(config.broker, clock)]
    findings += examine_reach(config.broker)
    if all(finding.verdict is not CheckResult.FAILED for finding in findings if finding.what == "broker"):
        findings += _rights(config, clock, answer_within_s, is_probing=is_probing)
    else:
        findings.append(skipped(RIGHTS, "the broker cannot be reached"))
    findings += _sources(_running(config))
    findings += [examine_rules(config, _running(config)), examine_orders(config, _running(config))]
    return Diagnosis(config.device, tuple(findings))


def _configuration(path: Path) -> list[Finding]:
    try:
        faults = check_file(path).faults
    except ConfigError as error:
        return [failed(CONFIGURATION, str(error), "give the agent's file with -c")]
    return [failed(CONFIGURATION, fault.located(path), "correct that line") for fault in faults]


def _rights(config: AgentConfig, clock: Clock, answer_within_s: float, *, is_probing: bool) -> list[Finding]:
    health = _running(config)
    if health is None or is_probing:
        return list(examine_rights(config, clock, answer_within_s))
    if not health.is_connected:
        return list(examine_rights(config, clock, answer_within_s))
    since = "never" if health.since_ack_s is None else f"{health.since_ack_s:.0f} s ago"
    summary = f"the agent is connected; the broker last took a message {since}; {health.not_sent} were not taken"
    if health.not_sent and health.since_ack_s is None:
        return [
            failed(
                RIGHTS, summary, "the broker lets it connect and takes nothing: --probe shows which topics; is the core running?"
            )
        ]
    return [good(RIGHTS, f"{summary} (--probe looks closer and interrupts it for a moment)")]


def _sources(health: Health | None) -> list[Finding]:
    """Sources that fail at this moment; only a running agent knows."""
    failing = {} if health is None else health.failing
    return [
        failed(SOURCES, f"{name}: {reason}", "correct what it says; the agent tries again by itself")
        for name, reason in failing.items()
    ]


def _running(config: AgentConfig) -> Health | None:
    try:
        health = read_health(config.state_dir)
    except AgentError:
        return None  # damaged: nothing is known of the running agent, so it is examined from outside
    return health if health is not None and is_alive(health.pid) else None


# The disk under the state folder: may it be written, does it keep what was synced, is there room for the quota?
DISK = "disk"
_PROBE = ".doctor.probe"
_MOUNTS = Path("/proc/self/mountinfo")
# Their fsync keeps nothing over a power cut.
_FORGETFUL = frozenset({"tmpfs", "ramfs", "overlay"})
_MIB = 1024 * 1024


def examine_disk(config: AgentConfig) -> Iterator[Finding]:
    """Look at the folder that holds spool, rules and models."""
    folder = config.state_dir
    if not folder.exists():
        # Not made here: it must belong to the agent's user, and this may be run by another.
        yield skipped(DISK, f"{folder} is not there yet; the agent makes it at its first start")
        return
    try:
        write_atomic(folder / _PROBE, b"x" * 4096)
        (folder / _PROBE).unlink()
    except OSError as error:
        yield failed(DISK, f"{folder} cannot be written: {error.strerror}", _write_fix(error, folder))
        return
    yield good(DISK, f"{folder} can be written and synced")
    yield _room(config, folder)
    kind = filesystem_of(folder.resolve(), _MOUNTS.read_text()) if _MOUNTS.exists() else ""
    if kind in _FORGETFUL:
        yield warning(DISK, f"{folder} is on {kind}: a power cut takes all that is not settled", "move state_dir to a real disk")


def _room(config: AgentConfig, folder: Path) -> Finding:
    about = os.statvfs(folder)
    free, whole = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
    used = sum(path.stat().st_size for path in config.spool_dir.rglob("*") if path.is_file())
    summary = f"{free // _MIB} MiB free; the spool holds {used // _MIB} of {config.spool.max_bytes // _MIB} MiB"
    if about.f_files and not about.f_favail:
        return failed(DISK, "no inode is free", f"delete small files on the file system of {folder}")
    if used + free >= config.spool.max_bytes:
        return good(DISK, summary)
    if config.spool.max_bytes > whole:
        return failed(
            DISK, f"{summary}; the whole disk has {whole // _MIB} MiB", f"lower [spool] max_bytes to {(used + free) * 9 // 10}"
        )
    fix = f"free some disk, or lower [spool] max_bytes to {(used + free) * 9 // 10}"
    return warning(DISK, f"{summary}: the disk is full before the quota is, and then others lack room, too", fix)


def filesystem_of(folder: Path, mounts: str) -> str:
    """The kind of file system a folder is on, given the text of /proc/self/mountinfo; empty where it does not say."""
    best, found = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        point = words[4].replace("\\040", " ") if len(words) > 4 else ""
        if point and folder.is_relative_to(point) and len(point) >= best:
            best, found = len(point), right.partition(" ")[0]
    return found


def _write_fix(error: OSError, folder: Path) -> str:
    if isinstance(error, PermissionError):
        return f"run this as the agent's user, or give that user the folder: chown -R USER {folder}"
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return "free some disk; the agent itself goes on draining meanwhile"
    if error.errno == 30:  # EROFS
        return "the file system is mounted read-only, perhaps after an error: look at dmesg, run fsck"
    return "look at dmesg: the disk itself may be failing"


# The wall clock: event times rest on it, and so does whether certificates hold.
CLOCK = "clock"
# This was written then; a clock before it was never set.
_WRITTEN_MS = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
_SET_IT = "start a time service (systemd-timesyncd, chrony), and see that the network lets NTP through"


def examine_clock(clock: Clock) -> Finding:
    """Look at the wall clock."""
    now_ms = clock.now_ms()
    now_text = dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC).isoformat(timespec="seconds")
    if now_ms < _WRITTEN_MS:
        return failed(CLOCK, f"{now_text}: the clock was never set, and certificates seem not valid yet", _SET_IT)
    if not kernel_says_synchronised():
        return warning(CLOCK, f"{now_text}, running free: nothing keeps it right", _SET_IT)
    return good(CLOCK, f"{now_text}, kept right by a time service")


# The rules and orders from the core, as the running agent tells of them.
RULES = "rules from the core"
ORDERS = "orders from the core"


def examine_rules(config: AgentConfig, health: Health | None) -> Finding:
    """Are they in force, all of them, and was anything refused?"""
    if config.policy is None and config.director is None:
        return skipped(RULES, "no [director] and no [policy]: every sample is kept")
    if health is None or health.policy is None:
        return skipped(RULES, "the agent does not run")
    policy = health.policy
    summary = f"version {policy.version} is in force" if policy.version else "none came yet"
    if policy.refused:
        fix = "is it signed by a key in [director] or [policy], and is this device among those it is for?"
        return warning(RULES, f"{summary}; {policy.refused} refused, the last: {policy.reason}", fix)
    if policy.suspended:
        names = "; ".join(f"{name}: {reason}" for name, reason in sorted(policy.suspended.items()))
        fix = "tell who wrote the policy; has this device the contract it was written for?"
        return warning(RULES, f"{summary}; not applied: {names}", fix)
    if policy.uninspected:
        names = "; ".join(f"{name}: {samples:,} samples" for name, samples in sorted(policy.uninspected.items()))
        return good(RULES, f"{summary}; could not inspect {names}")
    return good(RULES, summary)


def examine_orders(config: AgentConfig, health: Health | None) -> Finding:
    """Are the director's orders followed, and was one refused?"""
    if not config.models:
        return skipped(ORDERS, "no [model]: nothing is ordered")
    if config.director is None:
        fix = "add the [director] table that `catchment director show` prints"
        return warning(
            ORDERS, "no [director]: this device follows orders of anybody who controls the broker, among signed models", fix
        )
    if health is None or not health.documents:
        return skipped(ORDERS, "the agent does not run")
    document = health.documents[0]
    state = f"counter {document.counter} was followed" if document.counter else "none came yet"
    if not document.reason:
        return good(ORDERS, state)
    fix = "compare [director] with `catchment director show`, and look at the clock; the core signs again by itself"
    return warning(ORDERS, f"{state}; {document.refused} refused; the last: {document.reason}", fix)
