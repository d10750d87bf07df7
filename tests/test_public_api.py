"""The public names: all there, all documented, nothing else promised."""

import inspect

import segagent_rt


def test_every_public_name_exists_and_is_documented():
    for name in segagent_rt.__all__:
        thing = getattr(segagent_rt, name)
        assert inspect.getdoc(thing), name
        assert thing.__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(segagent_rt, "nothing")


def test_the_example_of_the_package_runs(tmp_path, monkeypatch):
    """Three lines from image to mask, as printed in the package's docstring."""
    from segagent_rt.draw import png
    from segagent_rt.scenes import make_scene

    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.png").write_bytes(png(make_scene(0).image))
    example = inspect.cleandoc(segagent_rt.__doc__.split("\n\n", 1)[1])
    space: dict = {}
    exec(example, space)
    assert space["mask"].shape == (512, 512)
