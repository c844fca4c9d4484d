"""How good a recommender is on events that it has not seen."""
