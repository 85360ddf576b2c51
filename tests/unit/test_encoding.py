"""Encodings found and broken Polish names mended; good names left alone."""

import json

import pytest

from ingestion.encoding import decode, detect_encoding, mend_names

NAMES = [
    "Śrubowa / Strzegomska",
    "Dworzec Główny, południe",
    "Powstańców Śląskich",
    "Księże Małe",
    "Źródlana",
    "Łódzka / Żabia",
    "Plac Grunwaldzki – Kładka",
]


# Read so, these lose bytes (the encoding has no character for them) or cannot be told from another name.
BEYOND_MENDING = {("Łódzka / Żabia", "cp1250"), ("Łódzka / Żabia", "cp1252"), ("Źródlana", "iso-8859-2")}
DAMAGE = [
    (name, wrong)
    for name in NAMES
    for wrong in ("cp1250", "iso-8859-2", "cp1252", "latin-1")
    if (name, wrong) not in BEYOND_MENDING
]


@pytest.mark.parametrize(("name", "wrong"), DAMAGE)
@pytest.mark.parametrize("times", [1, 2])
def test_mend_names_undoes_utf8_read_in_a_wrong_encoding(name, wrong, times):
    broken = name
    for _ in range(times):
        broken = broken.encode().decode(wrong)
    assert json.loads(mend_names(f'1,"{broken}",2\n') or "{}") == {broken: name}


def test_mend_names_takes_cp1250_where_a_name_could_be_two():
    broken = "Źródlana".encode().decode("iso-8859-2")
    assert json.loads(mend_names(broken) or "{}") == {broken: "Śródlana"}


# the last could be a Chinese character, read as cp1250
@pytest.mark.parametrize("name", [*NAMES, "Café Ä Ö", "Hallera", "„Cytat”", "ﬁnał", "ćłś"])
def test_mend_names_leaves_good_names_alone(name):
    assert mend_names(f'1,"{name}",2\n') is None


@pytest.mark.parametrize(
    "text", ['"' * 200_000 + "ą", "ą" * 200_000 + '"', "Ĺš" * 100_000, "x\x00ą", "ą\x85ą\rą", "\ud800"]
)
def test_mend_names_takes_any_text(text):
    mend_names(text)


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [
        ("Świętego Łukasza".encode(), "utf-8"),
        (b"plain", "utf-8"),
        ("Świętego".encode("utf-8-sig"), "utf-8-sig"),
        ("Świętego".encode("utf-16"), "utf-16"),
        ("Świętego Łukasza, Śląska".encode() + b", Ko\xc5", "utf-8"),
        ("Świętego Łukasza, Śląska".encode("cp1250"), "cp1250"),
        ("Świętego Łukasza, Śląska".encode("iso-8859-2"), "iso-8859-2"),
    ],
)
def test_detect_encoding_finds_what_polish_feeds_use(payload, encoding):
    assert detect_encoding(payload) == encoding
    assert decode(payload, encoding).count("\ufffd") == payload.count(b"Ko\xc5")
