"""``min.insync.replicas`` of topics with several replicas."""

import pytest

from infra.kafka.topics import insync_replicas_problem, min_insync_replicas


@pytest.mark.parametrize(("replicas", "minimum"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_one_broker_may_be_lost(replicas: int, minimum: int) -> None:
    assert min_insync_replicas(replicas) == minimum
    assert insync_replicas_problem(replicas, minimum) is None


@pytest.mark.parametrize(("replicas", "minimum", "words"), [(3, 1, "may lose events"), (1, 2, "no write can succeed")])
def test_unfit_minimum_is_explained(replicas: int, minimum: int, words: str) -> None:
    problem = insync_replicas_problem(replicas, minimum)
    assert problem is not None
    assert words in problem


def test_minimum_of_all_replicas_is_allowed() -> None:
    assert insync_replicas_problem(3, 3) is None
