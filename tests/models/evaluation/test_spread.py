"""The table over seeds, from boards whose figures are made up."""

from models.evaluation.leaderboard import Leaderboard, Row, spread_as_markdown
from models.evaluation.metrics import Estimate


def board(**ndcg: float) -> Leaderboard:
    nothing = Estimate(0.0, 0.0, 0.0)
    rows = (Row(name, "all", 9, Estimate(mean, mean, mean), nothing, nothing, 0.1, 1.0) for name, mean in ndcg.items())
    return Leaderboard(tuple(rows), at=0.0, until=1.0, n_train=1)


def test_each_recommender_gets_its_mean_lowest_and_highest() -> None:
    table = spread_as_markdown([board(a=0.1, b=0.2), board(a=0.3, b=0.2), board(a=0.2, b=0.2)])
    assert "| b | all | 0.2000 | 0.2000 | 0.2000 |" in table
    assert "| a | all | 0.2000 | 0.1000 | 0.3000 |" in table
