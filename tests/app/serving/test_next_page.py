"""What is kept of a player's answer, in a call that comes again."""

import numpy as np

from app.feedback.sessions import CANDIDATE, Session
from app.serving.next_candidates import Proposal
from app.serving.next_page import about
from tests.room import room


def test_what_is_kept_of_an_answer_takes_the_room_of_its_bytes() -> None:
    """A worker remembers sixty-four answers of each of a thousand sessions."""
    proposal = Proposal(np.empty(0, CANDIDATE), 0, True, ("next_blend", "popularity"), "next_blend", None)
    with room() as held:
        kept = [about(f"{number:026d}", proposal, Session("1"), 7, "a release") for number in range(100)]
        assert held() / len(kept) < 1_000
