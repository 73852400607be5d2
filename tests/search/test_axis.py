"""Axes: as text, as plain data, as Optuna's distributions."""

import math

import pytest
import yaml
from hypothesis import assume, given, strategies as st

from lightning_init import Axis
from lightning_init.search.axis import around, parse_axis


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.001:0.1", Axis(0.001, 0.1)),
        ("lr=1e-3:1e-1:log", Axis(0.001, 0.1, log=True)),
        ("width=16:128", Axis(16, 128, whole=True)),
        ("width=16:128:log", Axis(16, 128, log=True, whole=True)),
        ("width=16:128.5", Axis(16, 128.5)),
        ("act=tanh,relu", Axis(choices=("tanh", "relu"))),
        ("width=32,64.5", Axis(choices=(32, 64.5))),
        ("bias=true,false", Axis(choices=(True, False))),
        ("one=3", Axis(choices=(3,))),
        ("shift=-1:1", Axis(-1, 1, whole=True)),
        ("decay=null,0.1", Axis(choices=(None, 0.1))),
        ("n='1',1", Axis(choices=("1", 1))),
        ("act='a,b',\"c:d\",relu", Axis(choices=("a,b", "c:d", "relu"))),
        ("empty='',x", Axis(choices=("", "x"))),
    ],
)
def test_axes_as_text(text, expected):
    key, axis = parse_axis(text)
    assert key == text.partition("=")[0]
    assert axis == expected
    assert [type(c) for c in axis.choices] == [type(c) for c in expected.choices]


@pytest.mark.parametrize(
    "text",
    [
        *("", "lr", "lr=", "=1:2", "lr=1:2:3", "lr=1:2:lin", "lr=a:b", "lr=2:1", "lr=1:1"),
        *("lr=0:1:log", "lr=1:2:log:log", "lr=:1", "lr=nan:1", "lr=0:inf", "lr=1,", "lr=a,,b"),
        *("lr=1:2,3", "lr='a", "lr='1':2", "lr='a'b,c", "lr=true:2", "lr=1:2:'log'x"),
    ],
)
def test_bad_text_names_the_three_forms(text):
    with pytest.raises(ValueError, match=r"--axis must be KEY=LOW:HIGH, .* but got ") as caught:
        parse_axis(text)
    assert repr(text) in str(caught.value)


def test_an_interval_starts_in_its_middle():
    assert Axis(1, 3).start == 2
    assert Axis(1, 100, log=True).start == 10
    assert Axis(1, 4, whole=True).start in (2, 3)
    assert isinstance(Axis(1, 4, whole=True).start, int)
    assert Axis(0, 1, current=0.0).start == 0.0


def test_the_distribution_has_the_axis_scale():
    assert Axis(0.1, 10, log=True).distribution.log
    assert not Axis(0.1, 10).distribution.log
    whole = Axis(1, 8, whole=True).distribution
    assert (whole.low, whole.high, whole.step) == (1, 8, 1)
    assert math.isclose(Axis(0.1, 10, log=True).distribution.high, 10)


def test_a_learning_rate_spans_two_decades_around_the_users():
    axis = around(0.03)
    assert (axis.low, axis.high) == pytest.approx((0.003, 0.3))
    assert axis.log
    assert axis.start == 0.03


NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
CHOICES = st.lists(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(), min_size=1, max_size=4
)


@st.composite
def axes(draw):
    if draw(st.booleans()):
        choices = tuple(draw(CHOICES))
        return Axis(choices=choices, current=draw(st.none() | st.sampled_from(choices)))
    whole, log = draw(st.booleans()), draw(st.booleans())
    number = st.integers(-1000, 1000).map(float) if whole else NUMBERS
    low, high = sorted((draw(number), draw(number)))
    assume(low < high and (low > 0 or not log))
    return Axis(low, high, log, (), draw(st.none() | st.just(low)), whole)


@given(axes())
def test_an_axis_as_plain_data_comes_back(axis):
    for data in (axis.to_dict(), yaml.safe_load(yaml.safe_dump(axis.to_dict()))):
        back = Axis.from_dict(data)
        assert back == axis
        assert [type(c) for c in back.choices] == [type(c) for c in axis.choices]
        assert back.distribution == axis.distribution


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([0.1, 2], Axis(0.1, 2)),
        ([1, 8], Axis(1, 8, whole=True)),
        (["1e-3", 0.1], Axis(0.001, 0.1)),
        ([1, 2, 3], Axis(choices=(1, 2, 3))),
        (["a", "b"], Axis(choices=("a", "b"))),
        ([True, False], Axis(choices=(True, False))),
        ({"low": "1e-3", "high": 1, "log": True}, Axis(0.001, 1, log=True)),
        ({"choices": [1, 2]}, Axis(choices=(1, 2))),
    ],
)
def test_short_forms_in_a_file(data, expected):
    axis = Axis.from_dict(data)
    assert axis == expected
    assert [type(c) for c in axis.choices] == [type(c) for c in expected.choices]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"lo": 1, "high": 2}, "unknown key of an axis 'lo': did you mean 'low'"),
        ({"low": 1}, "needs the numbers low and high"),
        ({"low": 1, "high": 2, "log": "yes"}, "log and whole must be true or false"),
        ({"choices": []}, "choices must not be empty"),
        ({"choices": "ab"}, "choices must be a tuple"),
        ({"low": 0.5, "high": 2, "whole": True}, "from a whole number to a whole number"),
        ([[1], [2]], "a choice must be a text, a number, true, false or null"),
        (3, r"an axis is \[low, high\]"),
        ([], r"an axis is \[low, high\]"),
    ],
)
def test_bad_plain_data_says_what_is_legal(data, says):
    with pytest.raises(ValueError, match=says):
        Axis.from_dict(data)


def test_an_axis_starts_where_the_user_is_and_widens_to_hold_it():
    axis = Axis(0.01, 0.1, log=True)
    assert axis.at(0.05) == Axis(0.01, 0.1, log=True, current=0.05)
    assert axis.at(0.5) == Axis(0.01, 0.5, log=True, current=0.5)
    assert Axis(16, 64, whole=True).at(8) == Axis(8, 64, whole=True, current=8)
    choices = Axis(choices=(32, 64))
    assert choices.at(64).choices == (64, 32)
    assert choices.at(None).choices == (None, 32, 64)
    assert choices.at(None).start is None
    assert [type(c) for c in Axis(choices=(1, True)).at(True).choices] == [bool, int]
    for held, value in ((axis, 0), (axis, None), (axis, True), (Axis(1, 3, whole=True), 1.5)):
        with pytest.raises(ValueError, match="cannot hold"):
            held.at(value)
