"""The files that TLS reads: authorities, our certificate and its key.

`context` is what a connection is made with.  What is wrong with a file is raised as TlsFileError,
with the key that names it: OpenSSL itself says of a missing file no more than that it is missing.
`gazer check` and the start of a run ask the same way, so that they can't be of another opinion.

A key that is encrypted is refused: OpenSSL would ask for its password on the terminal, and wait.
"""

from __future__ import annotations

import ssl

from gazer.config.kinds import printable

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.config.forward import Tls

class TlsFileError(OSError):
    """`key` is the configuration's, as in tls.KEY."""

    def __init__(self, key: str, path: str, why: str) -> None:
        super().__init__(f"tls.{key}: {printable(path)}: {why}")
        self.key = key


class _EncryptedError(OSError):
    """What OpenSSL wants is a password."""


def context(tls: Tls) -> ssl.SSLContext:
    """TlsFileError: a file can't be used."""
    made = ssl.create_default_context() if not tls.ca_file else _told(
        "ca_file", tls.ca_file, "has no certificate in PEM form",
        lambda: ssl.create_default_context(cafile=tls.ca_file))
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if tls.cert_file:
        # Alone first: OpenSSL does not say which of the two it means.
        _told("cert_file", tls.cert_file, "has no certificate in PEM form",
              lambda: ssl.create_default_context(cafile=tls.cert_file))
        key, path, why = (
            ("key_file", tls.key_file, "has no key in PEM form that can be used") if tls.key_file
            else ("cert_file", tls.cert_file, "has no key beside the certificate: give key_file"))
        _told(key, path, why, lambda: made.load_cert_chain(
            tls.cert_file, tls.key_file or None, password=_refuse))
    return made


def _told(key: str, path: str, why: str, load: Callable[[], Any]) -> Any:
    try:
        with open(path, "rb"):      # the system's own words for what it has against this one
            return load()
    except _EncryptedError:
        why = "the key is encrypted, and nobody is there who could be asked for its password"
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "is not the key of the certificate"
    except OSError as error:
        why = error.strerror or str(error)
    raise TlsFileError(key, path, why)


def _refuse() -> str:
    raise _EncryptedError
