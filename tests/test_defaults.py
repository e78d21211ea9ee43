"""No default of an argument changes unseen."""

from tests.defaults import defaults, golden


def test_every_default_is_the_golden_one():
    found, kept = defaults(), golden()
    other = {
        name: f"{found.get(name)}, not {kept.get(name)}" for name in found | kept if found.get(name) != kept.get(name)
    }
    assert not other, f"{other}: if that is meant, run python -m tests.defaults and name the change in CHANGELOG.md"
