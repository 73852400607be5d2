"""What is true of every model of the zoo; `tests/truth_kinds.py` has the conventions."""

from tests.truth_attention import ATTENTION, GATES, SEQUENCE
from tests.truth_basic import BASIC, CONVOLUTION, RECURRENCE
from tests.truth_kinds import Truth, lookup
from tests.truth_transformers import LANGUAGE, SPEECH_AND_PAIRS, VISION

__all__ = ["TRUTH", "Truth", "lookup"]

TRUTH: dict[str, Truth] = {
    **(BASIC | CONVOLUTION | RECURRENCE),
    **(SEQUENCE | ATTENTION | GATES),
    **(LANGUAGE | VISION | SPEECH_AND_PAIRS),
}
