"""What makes the parameters of SVCB and HTTPS bad (good ones are in test_rdata.py)."""

import pytest

from tests.wire import encode_params, generic, render


@pytest.mark.parametrize("rdata", [
    encode_params({3: b"\0\1"}) + encode_params({1: b"\2h2"}),      # keys not rising
    encode_params({3: b"\0\1"}) * 2,                                # the same key twice
    encode_params({0: b""}), encode_params({0: b"\0"}), encode_params({0: b"\0\0"}),
    encode_params({0: b"\0\3\0\1"}), encode_params({0: b"\0\1\0\1"}),
    encode_params({1: b""}), encode_params({1: b"\0"}), encode_params({1: b"\3h2"}),
    encode_params({2: b"x"}), encode_params({3: b""}), encode_params({3: b"\1"}),
    encode_params({3: b"\1\2\3"}), encode_params({4: b""}), encode_params({4: b"abcde"}),
    encode_params({5: b""}), encode_params({6: b""}), encode_params({6: b"a" * 15}),
    encode_params({6: b"a" * 17}), encode_params({8: b"x"}),
    b"\0\1", b"\0\1\0", b"\0\1\0\4\2h2",
])
def test_bad_params(rdata):
    whole = b"\0\1\0" + rdata
    assert render("HTTPS", whole) == (generic(whole), "bad_rdata")


def test_newer_params():
    rdata = b"\0\1\0" + encode_params({8: b"", 9: b"\0\x1d", 65535: b"\"\\,"})
    assert render("HTTPS", rdata) == ('1 . ohttp key9="\\000\\029" key65535="\\"\\\\,"', "ok")
