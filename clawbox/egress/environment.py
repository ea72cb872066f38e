"""What a sandbox is told, so that ordinary programs find its way out and trust it. Pure.

Variables and files go together: the files are in one folder, which the sandbox sees at a path that the
variables name. docs/programs.md says which program needs which of them, and tests/programs tries each.
"""

from __future__ import annotations

import ssl
import warnings
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import NoEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore
from cryptography.utils import CryptographyDeprecationWarning

if TYPE_CHECKING:
    from collections.abc import Iterable

CA_FILE: Final = "ca.pem"
"""The sandbox's own authority, alone."""
BUNDLE_FILE: Final = "bundle.pem"
"""The same with all others that may be met: what a program trusts instead of the system's bundle."""
JAVA_FILE: Final = "truststore.p12"
"""The bundle as Java reads it."""
WGETRC_FILE: Final = "wgetrc"
APT_FILE: Final = "apt.conf"

NO_PROXY: Final = ("localhost", "127.0.0.1", "::1")
"""What a program reaches by itself: servers of its own."""

# A full bundle: the program trusts these authorities and no others.
_BUNDLE_VARIABLES: Final = (
    "SSL_CERT_FILE",  # OpenSSL, and with it Ruby, PHP, Python's ssl, httpx, aiohttp; Go; Rust's rustls
    "REQUESTS_CA_BUNDLE",  # Python's requests
    "CURL_CA_BUNDLE",  # the program curl, whatever its TLS library
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
)


def proxy_url(host: str, port: int, token: str | None = None) -> str:
    """How programs name a listener. ``token`` where it asks for one: the password of any user name."""
    bracketed = f"[{host}]" if ":" in host else host
    user = "" if token is None else f"x:{quote(token, safe='')}@"
    return f"http://{user}{bracketed}:{port}"


def sandbox_environment(
    *,
    folder: str,
    token: str,
    socket: str | None = None,
    proxy: str | None = None,
    sandbox: str | None = None,
) -> dict[str, str]:
    """The variables of every program in a sandbox.

    ``folder`` is where the sandbox sees the files of :func:`sandbox_files`, ``socket`` its Unix socket and
    ``proxy`` its TCP listener (:func:`proxy_url`), None without; ``sandbox`` is the container's id.
    """
    # The certificates are told without a TCP listener, too: CONNECT over the Unix socket needs them.
    variables = {"CLAWBOX_PROXY_TOKEN": token, "NODE_EXTRA_CA_CERTS": f"{folder}/{CA_FILE}"}
    variables |= dict.fromkeys(_BUNDLE_VARIABLES, f"{folder}/{BUNDLE_FILE}")
    # GnuTLS, which Debian's wget and apt use, looks at no variable.
    variables |= {"WGETRC": f"{folder}/{WGETRC_FILE}", "APT_CONFIG": f"{folder}/{APT_FILE}"}
    variables["JAVA_TOOL_OPTIONS"] = " ".join(_java_options(folder, proxy))
    if sandbox is not None:
        variables["CLAWBOX_CONTAINER_ID"] = sandbox
    if socket is not None:
        variables["CLAWBOX_PROXY_SOCKET"] = socket
    if proxy is not None:
        # Some programs read only the upper case, some (curl for http among them) only the lower.
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            variables |= {name: proxy, name.lower(): proxy}
        variables |= dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(NO_PROXY))
        variables["NODE_USE_ENV_PROXY"] = "1"  # since Node 24; before, its fetch knows no proxy
    return variables


def sandbox_files(*, folder: str, ca_pem: str, authorities: Iterable[bytes]) -> dict[str, bytes]:
    """Contents by name of the files in ``folder``, which is the path at which the sandbox sees it.

    ``authorities`` are the certificates (DER) to trust besides the sandbox's own: those of tunnelled hosts.
    """
    ders = list(dict.fromkeys([*authorities, ssl.PEM_cert_to_DER_cert(ca_pem)]))
    bundle = f"{folder}/{BUNDLE_FILE}"
    return {
        CA_FILE: ca_pem.encode("ascii"),
        BUNDLE_FILE: "".join(map(ssl.DER_cert_to_PEM_cert, ders)).encode("ascii"),
        JAVA_FILE: _java_trust_store(ders),
        WGETRC_FILE: f"ca_certificate = {bundle}\n".encode(),
        APT_FILE: f'Acquire::https::CaInfo "{bundle}";\n'.encode(),
    }


def _java_options(folder: str, proxy: str | None) -> list[str]:
    """System properties of the JDK (java.net: Networking Properties; JSSE Reference Guide)."""
    # Without a password: the file is public, and holds certificates alone.
    options = [f"-Djavax.net.ssl.trustStore={folder}/{JAVA_FILE}", "-Djavax.net.ssl.trustStoreType=PKCS12"]
    if proxy is None:
        return options
    place = urlsplit(proxy)
    for scheme in ("http", "https"):
        options += [f"-D{scheme}.proxyHost={place.hostname}", f"-D{scheme}.proxyPort={place.port}"]
    # What is reached directly needs no words: Java adds localhost and 127.* to whatever is said.
    if place.password is not None:
        # No property names a password, and it would be printed at each start: the program must set an
        # Authenticator, and Java must be told that Basic is good enough for a proxy.
        options.append("-Djdk.http.auth.tunneling.disabledSchemes=")
    return options


def _java_trust_store(ders: Iterable[bytes]) -> bytes:
    certificates = []
    with warnings.catch_warnings():
        # Some authorities of old have serial numbers that are none.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for number, der in enumerate(ders):
            try:
                certificate = x509.load_der_x509_certificate(der)
            except ValueError:
                continue  # one authority less for Java
            certificates.append(PKCS12Certificate(certificate, b"authority %d" % number))
        return serialize_java_truststore(certificates, NoEncryption())
