"""The search for the highest load, on servers that are known by a formula."""

import pytest

from scripts.load.highest import Search, Step


def search(most_in_time: int, most: int = 1024, failures: int = 0) -> Search:
    """Run a search to its end on a server that is in time up to a number of users."""
    found = Search(within_ms=100, most=most)
    while (users := found.users()) is not None:
        late = 100 if users <= most_in_time else 101
        found.add(Step(users, per_s=10.0 * users, median_ms=50, late_ms=late, failures=failures))
        assert len(found.steps) < 40
    return found


@pytest.mark.parametrize("most_in_time", [1, 2, 3, 7, 15, 16, 17, 100, 777])
def test_the_highest_load_is_found_to_a_sixteenth(most_in_time: int) -> None:
    best = search(most_in_time).best()
    assert best is not None
    assert most_in_time - max(1, most_in_time // 16) < best.users <= most_in_time
    assert best.per_s == 10 * best.users


def test_few_steps_are_needed() -> None:
    found = search(777)
    assert len(found.steps) <= 15
    assert len({step.users for step in found.steps}) == len(found.steps)


def test_a_server_that_is_late_for_one_user_has_no_highest_load() -> None:
    found = search(0)
    assert [step.users for step in found.steps] == [1]
    assert found.best() is None
    assert "Not even one user" in found.sentence()
    assert found.report()["best"] is None


def test_a_search_ends_at_the_most_users_and_says_so() -> None:
    found = search(10_000, most=100)
    assert [step.users for step in found.steps] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert "100 users at a time, 1000.0 requests/s" in found.sentence()
    assert "all the users that were allowed" in found.sentence()


def test_failed_requests_break_the_bound_and_so_does_no_answer_at_all() -> None:
    assert search(100, failures=1).best() is None
    assert not Search(100, 8).holds(Step(1, per_s=0, median_ms=0, late_ms=0, failures=0))


def test_the_report_has_all_steps() -> None:
    report = search(2).report()
    assert report["best"]["users"] == 2
    assert [step["users"] for step in report["steps"]] == [1, 2, 4, 3]
