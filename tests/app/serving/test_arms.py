"""What several variants of one request come to."""

from app.experiments.assigning import Assigned
from app.experiments.definitions import Experiment, Variant
from app.serving.arms import NO_ARM, Arm, arm_of

DEFAULTS = {"chains": {"new": ["popularity"]}, "parameters": {"diversity": 0.1}}


def of(key: str, *variants: Variant, number: int = 1, **more: object) -> Assigned:
    fields = {"run": 1, "seed": key, "namespace": None, "coverage": 1.0} | more
    experiment = Experiment(key, variants=variants, **fields)  # type: ignore[arg-type]
    return Assigned(experiment, experiment.variants[number], is_forced=False)


CONTROL = Variant("control", 0.5)


def test_variants_of_several_experiments_add_up() -> None:
    ranker = of("ranker", CONTROL, Variant("als", 0.5, recommender="als_hybrid"))
    variety = of("variety", CONTROL, Variant("much", 0.5, parameters={"diversity": 0.4}))
    plain = of("plain", CONTROL, Variant("none", 0.5, promotions=False))
    assert arm_of((ranker, variety, plain)) == Arm(
        {"ranker": "als", "variety": "much", "plain": "none"}, "als_hybrid", {"diversity": 0.4}, promotions=False
    )
    assert arm_of(()) is NO_ARM


def test_a_holdouts_control_group_gets_what_everybody_got_when_it_began() -> None:
    variants = (CONTROL, Variant("all", 0.5))
    held_out = arm_of((of("quarter", *variants, number=0, holdout=True, defaults=DEFAULTS),))
    assert held_out == Arm({"quarter": "control"}, parameters=DEFAULTS["parameters"], chains=DEFAULTS["chains"])
    assert arm_of((of("quarter", *variants, holdout=True, defaults=DEFAULTS),)) == Arm({"quarter": "all"})


def test_the_caller_has_the_last_word_on_diversity() -> None:
    arm = Arm(parameters={"diversity": 0.4})
    assert [arm.diversity(asked) for asked in (None, 0.0, 0.9)] == [0.4, 0.0, 0.9]
    assert NO_ARM.diversity(None) == 0.0
