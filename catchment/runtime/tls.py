"""One TLS client context for every role: mutual TLS, 1.3 at least."""

import ssl
from collections.abc import Callable
from pathlib import Path

Password = Callable[[], str]


class TlsFileError(OSError):
    """A file of the TLS configuration cannot be used; the message names its key, the file and what to do."""


def client_context(ca: Path | str, cert: Path | str, key: Path | str, password: Password | None = None) -> ssl.SSLContext:
    """The context of a client that shows a certificate and judges the server's by one authority.

    Args:
        ca: the broker's authority, PEM.
        cert: this client's certificate with its chain, PEM.
        key: its private key, PEM.
        password: gives the key's password; None: an encrypted key is refused, because nobody is there to type one.

    Raises:
        TlsFileError: one of the files cannot be read, is not what it should be, or certificate and key do not belong together.
    """
    for name, file in (("ca", ca), ("cert", cert), ("key", key)):
        _check_readable(name, file)
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (ssl.SSLError, OSError) as error:
        raise TlsFileError(f"tls.ca {ca}: not a certificate in PEM ({_reason(error)}); give the broker's authority") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # From Python 3.13 on, an authority that says too little of itself (no key usage) is refused, which 3.11 takes: a new
    # release of the system must not cut devices off. Chain, name, dates and purpose are judged all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def refuse() -> str:
        # Without it OpenSSL would ask the terminal, and a service would wait for an answer.
        raise TlsFileError(f"tls.key {key}: is encrypted; write it in clear, mode 0600: openssl pkey -in KEY -out PLAIN")

    try:
        context.load_cert_chain(str(cert), str(key), password or refuse)
    except ssl.SSLError as error:
        raise TlsFileError(
            f"tls.cert {cert} and tls.key {key}: {_reason(error)}; give a certificate and its own key, both in PEM"
        ) from error
    return context


def _check_readable(name: str, file: Path | str) -> None:
    try:
        with Path(file).open("rb"):
            return
    except OSError as error:
        raise TlsFileError(f"tls.{name} {file}: {error.strerror}; correct the path, or who may read it") from error


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)).replace("_", " ").lower()
