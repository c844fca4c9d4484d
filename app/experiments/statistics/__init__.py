"""What the numbers of an experiment say: comparisons of two variants and the checks around them. No SQL, no HTTP."""

from app.experiments.statistics.comparison import Comparison, compare
from app.experiments.statistics.outcomes import NoComparison, Outcomes
from app.experiments.statistics.sample_ratio import SampleRatio, sample_ratio

__all__ = ["Comparison", "NoComparison", "Outcomes", "SampleRatio", "compare", "sample_ratio"]
