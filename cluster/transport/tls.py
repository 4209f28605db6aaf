"""A gateway's certificate: read at the start, and again when its files change, without a restart.

Every handshake uses the newest pair of files that could be loaded: a broken or half-written pair never reaches a client, and
open connections keep theirs. TLS 1.2 and 1.3 with Python's defaults (no compression, no renegotiation, forward secrecy); no
client certificates: authentication is up to the agents.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

log = logging.getLogger("swiftclaw.tls")

CHECK_EVERY_S = 2.0


class BadCertificate(Exception):
    """One sentence: which file, and what is wrong with it."""


class Certificate:
    """`context` is for the server; the certificate that it presents follows the files. Raises BadCertificate."""

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key
        self._loaded_stamps = self._stamps()
        self._current = read(cert, key)
        self.context = read(cert, key)
        self.context.sni_callback = self._newest

    def refresh(self) -> bool:
        """Whether a new certificate is in use. Never raises: a valid certificate stays in use."""
        stamps = self._stamps()
        if stamps == self._loaded_stamps:
            return False
        self._loaded_stamps = stamps
        try:
            self._current = read(self._cert, self._key)
        except BadCertificate as error:
            log.error("%s; the previous certificate stays in use", error)
            return False
        log.info("reloaded the certificate in %s", self._cert)
        return True

    async def follow(self, every_s: float = CHECK_EVERY_S) -> None:
        """Check the files forever."""
        while True:
            await asyncio.sleep(every_s)
            self.refresh()

    def _newest(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _first: ssl.SSLContext) -> None:
        """OpenSSL calls this in every handshake, whether the client sent a host name or not."""
        connection.context = self._current

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """Differ after a file was written or replaced (also behind a link, as Kubernetes does)."""
        return [_stamp(path) for path in (self._cert, self._key)]


def read(cert: str, key: str) -> ssl.SSLContext:
    """A server's context with this certificate chain and key. Raises BadCertificate."""
    for what, path in (("certificate", cert), ("key", key)):
        _readable(what, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(f"tls: the key in {key} does not belong to the certificate in {cert}") from None
        broken = cert if _is_key(key) else key
        raise BadCertificate(f"tls: {broken} is not in PEM format or is damaged") from None
    except _Encrypted:
        raise BadCertificate(f"tls.key: {key} is protected by a password; use a key without one") from None
    except OSError as error:
        raise BadCertificate(f"tls: {cert} or {key} cannot be read ({error.strerror or error})") from None
    return context


def _readable(what: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            return
    except OSError as error:
        raise BadCertificate(f"tls: the {what} {path} cannot be read ({(error.strerror or str(error)).lower()})") from None


def _is_key(path: str) -> bool:
    try:
        return b"PRIVATE KEY-----" in Path(path).read_bytes()
    except OSError:
        return False


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    """Without this OpenSSL would prompt on the terminal."""
    raise _Encrypted


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
