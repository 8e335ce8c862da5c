"""Calls that are written as text: what they make, and that nothing else is ever run."""

import re

import pytest

from convjax.calls import made


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
