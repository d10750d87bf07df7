"""Scenario files: the packaged ones are sound, a user's own is checked before anything runs."""

import pytest

from segagent_rt.bench.scenario import packaged_scenarios, read_scenario
from segagent_rt.errors import InputError


def test_packaged_scenarios_are_read_by_name():
    names = set(packaged_scenarios())
    assert {
        "one",
        "one-full",
        "many",
        "sequence",
        "deadline",
        "ablation",
        "endurance",
        "growth",
    } <= names
    for name in names:
        assert read_scenario(name).name == name


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('kind = "one"\nscenes = 3\nside = 128\naccept = 0\n')
    scenario = read_scenario(path)
    assert (scenario.name, scenario.scenes, scenario.side) == ("mine", 3, 128)
    assert scenario.rules.accept_above is None, "0 uses the budget up"
    assert len(list(scenario.draw())) == scenario.warm_up + 3


WRONG = {
    "not TOML": b"kind = ",
    "not text": b"\xff\xfe\x00",
    "no kind": b"scenes = 3",
    "unknown kind": b'kind = "two"',
    "unknown field": b'kind = "one"\nscene = 3',
    "a word for a number": b'kind = "one"\nscenes = "many"',
    "no scenes": b'kind = "one"\nscenes = 0',
    "too many scenes": b'kind = "one"\nscenes = 1000000000',
    "too large": b'kind = "one"\nside = 1000000',
    "no clicks": b'kind = "one"\nclicks = 0',
    "no expressions": b'kind = "many"\nexpressions = []',
    "a negative share": b'kind = "deadline"\nshares = [-0.5]',
    "too deep": b"kind = " + b"[" * 50_000,
    "too long": b"#" * ((1 << 20) + 1),
    "a date": b'kind = "one"\nscenes = 2020-01-01',
}


@pytest.mark.parametrize("content", WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_scenario(path)
    said = str(caught.value)
    assert "mine.toml" in said
    assert "\n" not in said
    assert caught.value.hint


def test_a_name_that_nobody_knows_names_those_that_are_known(tmp_path):
    with pytest.raises(InputError, match="there is no scenario `swift`") as caught:
        read_scenario("swift")
    assert "one-full" in str(caught.value.hint)
    with pytest.raises(InputError):
        read_scenario(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        read_scenario("/dev/zero")
