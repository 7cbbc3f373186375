"""Error messages for users."""

import pytest
import torch

from sdlab.errors import first_line, memory_explained, reason


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("steps = 0: at least 1"), "steps = 0: at least 1"),
        (FileNotFoundError("no such folder"), "no such folder"),
        (RuntimeError("the network broke"), "RuntimeError: the network broke"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError: KeyError"),
    ],
)
def test_a_reason_has_the_type_of_an_error_that_is_not_ours(error, text):
    assert reason(error) == text


def test_the_first_line_leaves_out_the_trace():
    assert first_line(RuntimeError("\nno such operation\nand a long trace")) == "no such operation"
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(ValueError("x" * 500), 200) == "x" * 200


def test_other_errors_than_those_of_memory_are_left_as_they_are():
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_explained("this", torch.device("cpu")):
        raise RuntimeError("something else")
