"""A finding that is not well says what to do."""

import pytest

from server.check.finding import Finding, Level


@pytest.mark.parametrize("level", ["note", "to do"])
def test_without_advice_there_is_no_such_finding(level: Level) -> None:
    with pytest.raises(ValueError, match="does not tell what to do"):
        Finding("port", "3003", "in use", level)


@pytest.mark.parametrize(
    ("says", "text"), [("in use", "in use. End it."), ("Why?", "Why? End it."), ("So.", "So. End it.")]
)
def test_the_text_ends_with_what_to_do(says: str, text: str) -> None:
    assert Finding("port", "3003", says, "to do", "End it.").text == text
    assert Finding("port", "3003", says).text == says
