"""The device's certificate: does its key belong to it, did the authority sign it, how long does it hold?

A TLS handshake of the device with itself, in memory, is judged by the library that judges the real one.
"""

import datetime as dt
import ssl
import stat
from collections.abc import Iterator

from catchment.runtime.clock import Clock
from edge_agent.commands.doctor.findings import Finding, failed, good, skipped, warning
from edge_agent.config import BrokerConfig, TlsConfig
from edge_agent.errors import ConfigError, KeyEncryptedError
from edge_agent.identity.certificate import read_certificate, refuse_password
from schemas.ids import is_role_name

WHAT = "certificate"
_BY_SYSTEMD = "systemd hands it to the agent alone, so run this as root with a file that names /etc/catchment/device.key"
_SOON = dt.timedelta(days=30)
_NEW_ONE = "edge-agent enrol makes a new request; have it signed (docs/operator/install.md, Who a device is)"
_RENAME = "give the device another name: edge-agent enrol NAME, and have that signed"
_EXPIRED, _NOT_YET, _PURPOSE = 10, 9, 26  # OpenSSL's own numbers


def examine_certificate(broker: BrokerConfig, clock: Clock) -> Iterator[Finding]:
    """Look at the three files of [broker.tls]."""
    if broker.tls is None:
        yield skipped(WHAT, "no [broker.tls]: the broker is on this machine")
        return
    missing = [failed(WHAT, f"{path}: {reason}", fix) for path, reason, fix in _unreadable(broker.tls)]
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
        yield failed(WHAT, str(error), _NEW_ONE)
        return
    now = dt.datetime.fromtimestamp(clock.now_ms() / 1000, tz=dt.UTC)
    if is_role_name(found.device):
        yield warning(WHAT, f"its name {found.device} is one of the core's own and has the core's rights", _RENAME)
    summary = f"{found.device}, signed by {found.issuer}, holds until {found.not_after:%Y-%m-%d}"
    if now > found.not_after:
        yield failed(WHAT, f"{summary}: expired", f"samples are kept meanwhile; {_NEW_ONE}")
    elif now < found.not_before:
        yield failed(
            WHAT, f"{summary}, but only from {found.not_before:%Y-%m-%d} on", "set the clock; if it is right, ask for another"
        )
    elif found.not_after - now < _SOON:
        yield warning(WHAT, f"{summary}: in {(found.not_after - now).days} days", _NEW_ONE)
    else:
        yield good(WHAT, summary)


def _key_mode(tls: TlsConfig) -> Iterator[Finding]:
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    if mode & 0o077:
        yield warning(WHAT, f"others can read the key {tls.key} (mode {mode:04o})", f"chmod 600 {tls.key}")


def _proof(tls: TlsConfig) -> Finding:
    try:
        judge, device = _contexts(tls)
    except KeyEncryptedError as error:
        message, _, fix = str(error).partition("; ")
        return failed(WHAT, f"{tls.key}: {message}", fix)
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            return failed(
                WHAT, f"the key {tls.key} does not belong to {tls.cert}", "bring the certificate made for this key's request"
            )
        return failed(
            WHAT, f"a file of [broker.tls] is not what it should be: {error}", "all three are PEM files; ca holds certificates"
        )
    try:
        _shake_hands(judge, device)
    except ssl.SSLCertVerificationError as error:
        return failed(WHAT, f"{tls.ca} does not vouch for {tls.cert}: {error.verify_message}", _verify_fix(error.verify_code))
    except ssl.SSLError as error:
        return failed(WHAT, f"key and certificate do not make a TLS 1.3 handshake: {error}", _NEW_ONE)
    return good(WHAT, "the key belongs to it and the authority vouches for it")


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
