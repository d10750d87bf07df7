"""Figures over scenes: what a perfect annotator would have made of the same first click."""

from segagent_rt.annotators.oracle import OracleAnnotator, next_click
from segagent_rt.eval.scenes import SceneResult, _Oracle, summarise
from segagent_rt.loop import StoppingRules, annotate
from segagent_rt.metrics import iou
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene

SCENE = make_scene(7, 256)


def test_the_oracle_goes_on_from_a_first_click_that_is_not_its_own():
    target, wrong = SCENE.mask(0), SCENE.mask(1)
    with load(threads=1) as runtime:
        canvas = runtime.open(SCENE.image)
        oracle = _Oracle(canvas, target, 4)
        steps = {
            name: annotate(
                "it", OracleAnnotator(mask).look(SCENE.image), runtime.segmenter, canvas.embedding,
                rules=StoppingRules.fixed(1),
            ).steps[0]
            for name, mask in (("own", target), ("other", wrong))
        }  # fmt: skip
        alone, own, other = oracle.ious(), oracle.ious(steps["own"]), oracle.ious(steps["other"])
        first = steps["other"].prediction
        assert first is not None
        clicks = [steps["other"].click, next_click(target, first.mask())]
        second = runtime.segmenter.decode(canvas.embedding.result(), clicks, prior=first)
    assert alone == own
    assert len(other) == len(alone) == 4
    assert other[:2] == [iou(each.mask(), target) for each in (first, second)]
    assert other[0] < 0.1 < alone[0]


def test_the_oracles_gain_is_counted_from_the_annotators_first_mask():
    result = SceneResult(
        kind="colour", hit=True, read=1.0, ious=[0.7, 0.8], ratings=[0.7, 0.9], returned=0.8,
        clicks=2, looks=3, oracle=[0.9, 0.95], corrected=0.92, leak_negative=None, leak_hit=None,
    )  # fmt: skip
    figures = summarise([result, result], 2)
    assert figures.gain == 0.1
    assert figures.oracle_gain == 0.22
