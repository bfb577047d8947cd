from __future__ import annotations

from hjepa.errors import Mistake, Problem, StudyMistake, listed, nearest


def test_the_nearest_words_are_asked_for_and_none_where_nothing_is_near():
    assert nearest("vicregg", ["vicreg", "sigreg", "ema"]) == ", did you mean 'vicreg' or 'sigreg'?"
    assert nearest("momentt", ["moment", "frame"]) == ", did you mean 'moment'?"
    assert nearest("qqq", ["moment", "frame"]) == ""
    assert nearest("x", []) == ""


def test_a_list_of_nothing_says_none():
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == "none"


def test_all_mistakes_of_a_study_are_one_message_with_their_paths():
    mistake = StudyMistake("mine", [Problem("levels.a.width", "must be 1 or more"), Problem("", "it is empty")])
    assert isinstance(mistake, Mistake)
    assert str(mistake) == "mine: 2 mistakes\n  levels.a.width: must be 1 or more\n  it is empty"
    assert str(StudyMistake("mine", mistake.problems[:1])).startswith("mine: one mistake\n")
    assert mistake.problems[0].path == "levels.a.width"
