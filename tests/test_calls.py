"""Calls that are written as text: what they make, and that nothing else is ever run."""

import re

import pytest

from convjax.calls import floats, made, without


def box(width, height=1, *, name="box"):
    return width, height, name


def pile(*parts):
    return list(parts)


KNOWN = {"box": box, "pile": pile}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("box(2)", (2, 1, "box")),
        (" box ( 2, height = (1, [2.5]) ) ", (2, (1, [2.5]), "box")),
        ("box(-1, name='a:b(')", (-1, 1, "a:b(")),
        ("pile", []),
        ("pile(1, box(2), pile(box(3)), pile)", [1, (2, 1, "box"), [(3, 1, "box")], []]),
        ("builtins:dict(a=1)", {"a": 1}),
        ("datetime:timedelta(days=1)", __import__("datetime").timedelta(days=1)),
    ],
)
def test_a_call_makes_what_python_would(text, value):
    assert made(text, KNOWN, "thing", nested=pile) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bx(2)", "'bx(2)': there is no bx; did you mean 'box'?"),
        ("box", "missing a required argument: 'width'; it is box(width, height=1, *, name='box')"),
        ("box(2, size=3)", "unexpected keyword argument 'size'; it is box(width,"),
        ("box(1, 2, 3)", "too many positional arguments"),
        ("box(width)", "width is no literal: give a number, 'a text', True, False, None"),
        ("box(1 + len('a'))", "is no literal"),
        ("box(pile(1))", "pile(1) is no literal"),
        ("box(**{'width': 1})", "give each argument once, and by its name"),
        ("box.__class__(1)", "this is no call"),
        ("box(1)(2)", "this is no call"),
        ("box(1); box(2)", "this is no call"),
        ("(lambda: box(1))()", "this is no call"),
        ("", "this is no call"),
        ("nowhere.to:be(1)", "'nowhere.to:be(1)': "),
        (3, "3 is no text: write a call in quotes"),
    ],
)
def test_anything_else_is_refused_with_the_text_and_the_reason(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        made(text, KNOWN, "thing", nested=pile)
    assert str(error.value).startswith(repr(text))
    assert "\n" not in str(error.value)


def test_floats_are_found_by_their_places_in_a_call_and_in_the_calls_within():
    text = "mine.part:pile(0.5, 1, -2.5, (3, [4.5]), True, '6.5', box(7.5, name=8.5))"
    assert floats(text) == {
        "(0)": 0.5,
        "(2)": -2.5,
        "(3)[1][0]": 4.5,
        "(6)(0)": 7.5,
        "(6)(name)": 8.5,
    }
    assert floats("box") == {}


def test_numbers_stand_for_the_floats_at_their_places():
    given = {"(0)": "first", "(1)(height)[1]": "second", "(2)": "an integer's"}
    made_of = made("pile(0.5, box(1.5, height=(2, 2.5)), 3)", KNOWN, "", nested=pile, numbers=given)
    assert made_of == ["first", (1.5, (2, "second"), "box"), 3]


def test_calls_that_differ_in_blanks_and_spaces_alone_are_one_text():
    assert without("m:box( 0.5,(1.5, 2.5) )", ["(0)", "(1)[1]"]) == "m:box(_, (1.5, _))"
    assert without("m:box(-7.0, (1.5,9.5))", ["(0)", "(1)[1]"]) == "m:box(_, (1.5, _))"
    assert without("box(0.5)", []) != without("box(0.6)", [])
    assert without("box(0.5)", ["(0)"]) != without("m:box(0.5)", ["(0)"])


@pytest.mark.parametrize("read", [floats, lambda text: without(text, [])])
def test_what_is_no_call_is_refused_by_its_text(read):
    with pytest.raises(ValueError, match=re.escape("'box(': this is no call")):
        read("box(")
