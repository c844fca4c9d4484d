"""What the numbers of an experiment say: comparisons of two variants and the checks around them. No SQL, no HTTP."""

from app.experiments.statistics.comparison import Comparison, compare
from app.experiments.statistics.multiple import adjusted
from app.experiments.statistics.outcomes import NoComparison, Outcomes
from app.experiments.statistics.power import Waiting, days_left, minimum_detectable_effect, users_needed
from app.experiments.statistics.sample_ratio import SampleRatio, StratifiedSampleRatio, sample_ratio, sample_ratio_by

__all__ = [
    "Comparison",
    "NoComparison",
    "Outcomes",
    "SampleRatio",
    "StratifiedSampleRatio",
    "Waiting",
    "adjusted",
    "compare",
    "days_left",
    "minimum_detectable_effect",
    "sample_ratio",
    "sample_ratio_by",
    "users_needed",
]
