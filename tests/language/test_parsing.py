"""Parsing: what is read, and that every refusal points at its column."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.language.parsing import MAX_CHARACTERS, ParseError, parse
from jaxprune.language.vocabulary import PAPER_VOCABULARY, Vocabulary


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("X**2", "square(X)"),
        ("(mP - mX)**2", "square(mP - mX)"),
        ("-0.5", "-0.5"),
        ("+N", "N"),
        ("-N", "-1*N"),
        ("-N**2", "-1*square(N)"),
        ("--2", "2"),
        ("  sum( abs( WI ) )\n", "sum(abs(WI))"),
        ("(N\n+ NQ)", "N + NQ"),
        ("5e-2*N", "0.05*N"),
        ("1_000*N", "1000*N"),
        ("rbf(P,Q,1)", "rbf(P, Q, 1)"),
    ],
)
def test_spellings_of_one_formula(text, same):
    if text == "--2":
        assert str(parse(text)) == "-1*-2"
    else:
        assert str(parse(text)) == same


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "The formula is empty"),
        ("   ", 0, "The formula is empty"),
        ("mean(X", 4, "syntax error"),
        ("N +", 3, "syntax error"),
        ("  N $ 2", 4, "syntax error"),
        ("mean(Y)", 5, r"operand must be one of X P .* got 'Y'"),
        ("mean(mp)", 5, "Did you mean 'mP'"),
        ("l1", 0, "l1 is a named function: take it from library"),
        ("2*mean_shift", 2, "take it from own_seeds"),
        ("2*maen(X)", 2, "Did you mean 'mean'"),
        ("2 + mean", 4, r"mean is an operator: write mean\(...\)"),
        ("1 + WI(2)", 4, "WI is an operand: it takes no arguments"),
        ("N + 1/(WI + mX)", 12, r"\+ needs .* got \(F\), \(D\)"),
        ("  mean(inverse(P))", 7, r"inverse needs \(a,a\) -> \(a,a\), got \(N, D\)"),
        ("rbf(P)", 0, r"followed by 1 numbers, got 1 arguments"),
        ("rbf(P, Q)", 7, "ends with 1 literal numbers, got a name"),
        ("rbf(P, -1)", 0, "positive width sigma, got -1"),
        ("slice(X, 5, 2)", 0, "0 <= i < j <= 8"),
        ("mean()", 0, r"mean needs \* -> \(\), got 0 arguments"),
        ("mean(X, P)", 0, r"mean needs .* got \(NX, D\), \(N, D\)"),
        ("mean(x=1)", 0, "by position, got x="),
        ("N + X.T", 4, r"an attribute \(a dot\)"),
        ("N.real(1)", 0, "Only operators can be called"),
        ("N + X[0]", 4, "use slice"),
        ("X @ P", 0, "use matmul"),
        ("X^2", 0, r"got \^ \(a square is \*\*2\)"),
        ("N//2", 0, "got //"),
        ("N < 1", 0, "a comparison"),
        ("N and 1", 0, "and/or"),
        ("lambda: 1", 0, "a lambda"),
        ("[N]", 0, "got Python's List"),
        ("not N", 0, "The sign before a value must be"),
        ("N + True", 4, "A number is needed, got True"),
        ("N*'a'", 2, "A number is needed, got 'a'"),
        ("2j", 0, "A number is needed"),
        ("1e999", 0, "finite in double precision"),
        ("9" * 400, 0, "finite in double precision"),
        ("N**3", 3, r"only power is \*\*2"),
        ("N**NQ", 3, r"only power is \*\*2"),
        ("N + é", 4, "plain ASCII"),
        ("N # all", 2, "plain ASCII"),
        ("N; N", 1, "plain ASCII"),
        ("__import__('os')", 0, "operator must be one of"),
    ],
)
def test_a_refusal_says_why_and_points_at_its_column(text, column, message):
    with pytest.raises(ParseError, match=message) as caught:
        parse(text)
    assert caught.value.column == column
    if text.strip() and len(text) < 60:
        *_, shown, caret = str(caught.value).split("\n")
        assert shown == f"  {text}" and caret == " " * (column + 2) + "^"


def test_a_long_text_is_shown_around_the_trouble():
    with pytest.raises(ParseError) as caught:
        parse("N + " * 100 + "foo" + " + N" * 100)
    *_, shown, caret = str(caught.value).split("\n")
    assert shown[caret.index("^") :].startswith("foo") and len(shown) < 130


def test_text_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="needs a formula as text, got int"):
        parse(3)


def test_characters_are_bounded():
    with pytest.raises(ParseError, match="at most 4000 characters, got 4001"):
        parse("N" * (MAX_CHARACTERS + 1))


def test_nodes_are_bounded():
    assert parse("+".join(["N"] * 500)).size == 999
    with pytest.raises(ParseError, match="at most 1000 nodes"):
        parse("+".join(["N"] * 501))


@pytest.mark.parametrize(
    "text",
    [
        "abs(" * 64 + "N" + ")" * 64,
        "1/(" * 70 + "N" + ")" * 70,
        "N" + "/2" * 64,
        "-(" * 70 + "N" + ")" * 70,
        "(" * 1500 + "N" + ")" * 1500,
        "-" * 3900 + "N",
        "N" + "**2" * 70,
    ],
)
def test_depth_is_bounded(text):
    with pytest.raises(ParseError, match=r"levels|syntax error|only power"):
        parse(text)
    assert parse("abs(" * 63 + "N" + ")" * 63).depth == 64


def test_a_vocabulary_leaves_the_rest_out():
    with pytest.raises(
        ParseError, match=r"must be one of X P Q .* got 'WO'. It exists, but this vocabulary leaves it out"
    ):
        parse("sum(WO)", PAPER_VOCABULARY)
    vocabulary = Vocabulary(("WI",), ("abs", "sum"))
    assert str(parse("sum(abs(WI))", vocabulary)) == "sum(abs(WI))"
    with pytest.raises(ParseError, match="operator must be one of abs sum, got 'mean'"):
        parse("mean(WI)", vocabulary)
    with pytest.raises(ParseError, match=r"has only the operators abs sum, got \+"):
        parse("WI + WI", vocabulary)
    with pytest.raises(ParseError, match="has only the operators abs sum, got square"):
        parse("WI**2", vocabulary)


@given(st.text(alphabet="XPQmWIN()+-*/. ,0123456789abesumrqt[]'\"\t\n", max_size=60))
def test_any_text_is_read_or_refused_as_a_formula(text):
    try:
        f = parse(text)
    except ParseError:
        return
    assert parse(str(f)) is f
