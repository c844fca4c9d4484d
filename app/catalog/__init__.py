"""Users, items and the editorial rules on them."""
