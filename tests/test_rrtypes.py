"""Mnemonics against dnspython's tables, and the forms for numbers without a name."""

import dns.edns
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from gazer.workers import probe, rrtypes

NAMED = {
    "type": rrtypes.TYPES,
    "class": rrtypes.CLASSES,
    "rcode": rrtypes.RCODES,
    "opcode": rrtypes.OPCODES,
}


@pytest.mark.parametrize("kind", NAMED)
def test_every_number(kind):
    names = NAMED[kind]
    for number in range(0x10000):
        expected = names.get(number)
        assert probe.number_name(kind, number) == expected
        assert probe.write(kind, number, 11) == (expected or f"{kind.upper()}{number}")


@pytest.mark.parametrize("kind", NAMED)
def test_names_are_short(kind):
    """put_type and its sisters promise at most 10 bytes (opcodes have 4 bits, rcodes 12)."""
    most = {"opcode": 15, "rcode": 4095}.get(kind, 65535)
    assert max(map(len, [*NAMED[kind].values(), f"{kind.upper()}{most}"])) <= 10


def test_types_are_dnspythons():
    for number in range(0x10000):
        theirs = dns.rdatatype.to_text(number)
        if theirs != f"TYPE{number}":
            assert rrtypes.TYPES[number] == theirs


def test_types_dnspython_may_not_know():
    assert rrtypes.TYPES[58] == "TALINK"
    assert rrtypes.TYPES[263] == "CLA"
    assert probe.write("type", 0, 10) == "TYPE0"


def test_classes_are_dnspythons():
    for number, name in rrtypes.CLASSES.items():
        assert dns.rdataclass.to_text(number) == name
    assert probe.write("class", 0x8001, 10) == "CLASS32769"


def test_rcodes_are_dnspythons():
    for number in range(4096):
        theirs = dns.rcode.to_text(number)
        if not theirs.isdigit() and number != 11:
            assert rrtypes.RCODES[number] == theirs
    assert rrtypes.RCODES[11] == "DSOTYPENI"        # RFC 8490, section 10.2


def test_opcodes_are_dnspythons():
    for opcode in dns.opcode.Opcode:
        assert rrtypes.OPCODES[opcode.value] == opcode.name


def test_extended_errors():
    for number in range(0x10000):
        assert probe.number_name("ede", number) == rrtypes.EDE.get(number)
    assert set(range(25)) <= set(rrtypes.EDE)       # RFC 8914 itself; the rest came later
    for code in dns.edns.EDECode:
        if code.value not in rrtypes.EDE:
            continue
        ours = rrtypes.EDE[code.value].upper().replace(" ", "_")
        assert ours == {"OTHER": "OTHER_ERROR"}.get(code.name, code.name)
