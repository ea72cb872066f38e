"""What a request may set, and what the programs of a container get."""

import pytest

from clawbox.containers.environment import check_environment, container_environment
from clawbox.egress.environment import proxy_url, sandbox_environment
from clawbox.errors import ClawboxError, Reason

WAY_OUT = sandbox_environment(
    folder="/run/clawbox/tls",
    token="T",
    socket="/run/clawbox/proxy.sock",
    proxy=proxy_url("127.0.0.1", 3128),
    sandbox="id",
)


def refused(given):
    with pytest.raises(ClawboxError) as caught:
        check_environment(given)
    assert caught.value.reason is Reason.INVALID_FIELD
    return {violation.field: violation.rule for violation in caught.value.violations}


def test_ordinary_variables_may_be_set():
    check_environment(
        {"PATH": "/bin", "HOME": "/tmp", "a_1": "x=y\n", "_": "", "LANG": "C", "PYTHONPATH": "/x"}
    )
    check_environment({})


@pytest.mark.parametrize("name", sorted(WAY_OUT))
def test_rule_85_nothing_that_tells_the_way_out_may_be_set(name):
    assert refused({name: "x"}) == {f"env[{name}]": "reserved"}


@pytest.mark.parametrize(
    "name",
    [
        *("CLAWBOX_", "CLAWBOX_ANYTHING", "clawbox_proxy_token", "All_Proxy", "ftp_proxy", "Http_Proxy"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PYTHONSTARTUP", "NODE_OPTIONS"),
        *("SSL_CERT_DIR", "NODE_TLS_REJECT_UNAUTHORIZED"),
    ],
)
def test_rule_85_nothing_that_runs_before_the_program_may_be_set(name):
    assert refused({name: ""}) == {f"env[{name}]": "reserved"}


@pytest.mark.parametrize(
    "name", ["", "1A", "A-B", "A B", "LD_PRELOAD=x", "A=", "A\0", "A\n", "Ä", "A" * 129, "\ud800", "${A}"]
)
def test_what_is_no_name_is_refused(name):
    assert list(refused({name: "x"}).values()) == ["pattern"]


def test_every_wrong_variable_is_named():
    assert refused({"LD_PRELOAD": "x", "OK": "1", "A-B": "", "NUL": "\0", "BIG": "x" * 32_769}) == {
        "env[LD_PRELOAD]": "reserved",
        "env[A-B]": "pattern",
        "env[NUL]": "pattern",
        "env[BIG]": "max_length",
    }


def test_number_and_size_of_all_are_bounded():
    assert refused({f"A{n}": "" for n in range(257)}) == {"env": "max_items"}
    assert refused({f"A{n}": "x" * 32_000 for n in range(5)}) == {"env": "max_length"}


def test_later_layers_win_and_every_variable_is_there_once():
    made = container_environment(
        image=["PATH=/image", "HOME=/root"],
        home="/workspace",
        request={"A": "1", "PATH": "/mine"},
        way_out={"HTTP_PROXY": "p"},
    )

    assert made == ("A=1", "HOME=/workspace", "HTTP_PROXY=p", "PATH=/mine")
    assert container_environment(image=[], home="/h", request={"HOME": "/tmp"}, way_out={}) == ("HOME=/tmp",)


def test_rule_85_what_an_image_sets_of_them_is_overridden_or_emptied():
    image = [
        "LD_PRELOAD=/evil.so",
        "http_proxy=http://evil",
        "CLAWBOX_X=1",
        "SSL_CERT_FILE=/evil",
        "ALL_PROXY=e",
    ]

    made = dict(
        entry.split("=", 1)
        for entry in container_environment(image=image, home="/", request={}, way_out=WAY_OUT)
    )
    assert {made[name] for name in ("LD_PRELOAD", "CLAWBOX_X", "ALL_PROXY")} == {""}
    assert made["http_proxy"] == WAY_OUT["http_proxy"]
    assert made["SSL_CERT_FILE"] == WAY_OUT["SSL_CERT_FILE"]

    # Without a way out there is nothing else to trust.
    alone = container_environment(image=image, home="/", request={}, way_out={})
    assert alone == ("ALL_PROXY=", "CLAWBOX_X=", "HOME=/", "LD_PRELOAD=", "http_proxy=")


def test_a_request_that_sets_what_it_may_not_makes_no_environment():
    with pytest.raises(ClawboxError):
        container_environment(image=[], home="/", request={"LD_PRELOAD": "x"}, way_out={})
