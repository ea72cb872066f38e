"""What a sandbox is told of its way out. That programs understand it: tests/programs."""

from __future__ import annotations

import re
import ssl

import pytest
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from clawbox.egress.environment import proxy_url, sandbox_environment, sandbox_files
from tests.egress_world import TestCa

FOLDER = "/run/clawbox"


@pytest.mark.parametrize(
    ("place", "url"),
    [
        (("127.0.0.1", 3128), "http://127.0.0.1:3128"),
        (("::1", 3128), "http://[::1]:3128"),
        (("127.0.0.1", 3128, "a/b+c"), "http://x:a%2Fb%2Bc@127.0.0.1:3128"),
    ],
)
def test_a_token_cannot_change_what_a_url_means(place, url):
    assert proxy_url(*place) == url


def test_without_a_tcp_listener_programs_are_told_of_the_socket_alone():
    variables = sandbox_environment(folder=FOLDER, token="t", socket=f"{FOLDER}/proxy.sock", sandbox="c-1")

    assert variables["CLAWBOX_PROXY_SOCKET"] == "/run/clawbox/proxy.sock"
    assert variables["CLAWBOX_PROXY_TOKEN"] == "t"
    assert variables["CLAWBOX_CONTAINER_ID"] == "c-1"
    assert [name for name in variables if "PROXY" in name.upper().removeprefix("CLAWBOX_PROXY")] == []
    assert "proxyHost" not in variables["JAVA_TOOL_OPTIONS"]


def test_the_token_is_not_among_java_options_which_java_prints():
    token = "the-token-of-this-sandbox"
    variables = sandbox_environment(folder=FOLDER, token=token, proxy=proxy_url("127.0.0.1", 3128, token))

    assert token in variables["HTTPS_PROXY"]
    assert token not in variables["JAVA_TOOL_OPTIONS"]
    assert variables["https_proxy"] == variables["HTTPS_PROXY"]


def test_every_file_that_a_variable_names_is_there():
    files = sandbox_files(folder=FOLDER, ca_pem=TestCa().pem, authorities=())
    variables = sandbox_environment(folder=FOLDER, token="t", proxy=proxy_url("127.0.0.1", 3128))

    told = " ".join([*variables.values(), files["wgetrc"].decode(), files["apt.conf"].decode()])
    named = set(re.findall(rf"{FOLDER}/([\w.]+)", told))
    assert named == set(files)


def test_the_sandboxes_own_authority_comes_on_top_of_the_others():
    own, other = TestCa("own"), TestCa("other")
    other_der = ssl.PEM_cert_to_DER_cert(other.pem)

    files = sandbox_files(folder=FOLDER, ca_pem=own.pem, authorities=[other_der, other_der])

    assert files["ca.pem"].decode() == own.pem
    assert files["bundle.pem"].decode() == other.pem + own.pem
    java = load_pkcs12(files["truststore.p12"], None)
    assert [entry.certificate.subject for entry in java.additional_certs] == [other.name, own.name]
    assert java.key is None


def test_an_authority_that_cannot_be_read_is_one_less_for_java():
    files = sandbox_files(folder=FOLDER, ca_pem=TestCa("own").pem, authorities=[b"of a kind of its own"])

    assert len(load_pkcs12(files["truststore.p12"], None).additional_certs) == 1
