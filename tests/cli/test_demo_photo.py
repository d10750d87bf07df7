"""`segagent-rt demo --photo`: the packaged photo, given clicks, offline."""

import json

from segagent_rt.image import load_image


def test_the_cup_is_cut_out_and_the_photo_is_credited(terminal, tmp_path):
    done = terminal("demo", "--photo", "-o", tmp_path, "--json")
    document = json.loads(done.out)
    assert document["bundle"] == "photo"
    signs = [click["positive"] for click in document["results"][0]["clicks"]]
    assert signs == [True, False, False, True]
    assert "Rachel Michetti, CC0" in done.err
    mask = load_image(tmp_path / "photo.segagent.mask.png")[..., 0] > 127
    assert 0.2 < mask.mean() < 0.26
    assert (tmp_path / "photo.jpg").is_file()
    assert (tmp_path / "photo.segagent.overlay.png").is_file()
