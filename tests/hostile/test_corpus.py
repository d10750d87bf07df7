"""A hostile input ends in one sentence and the right exit code: no traceback, no hang, no flood of
memory. The whole corpus is marked slow; every kind has a sample that always runs."""

from __future__ import annotations

import sys

import pytest

from tests.hostile.runner import cases_of, run_cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are measured in /proc")

KINDS = {"bundles": 200, "images": 300, "data_files": 60, "argument_lists": 60, "answers": 100}
"""How many cases there are at least."""

CHECKPOINTS = 100

SAMPLE = 8
"""Cases of each kind that always run."""


@pytest.mark.thorough
def test_a_sample_is_refused_as_it_should_be(tmp_path):
    chosen = []
    for kind in KINDS:
        count = len(cases_of(kind))
        chosen += [(kind, at) for at in range(count // SAMPLE // 2, count, count // SAMPLE)]
    assert run_cases(chosen, tmp_path, workers=1).problems == []


@pytest.mark.slow
@pytest.mark.export
def test_checkpoints_are_refused_as_they_should_be(tmp_path):
    check_all("checkpoints", CHECKPOINTS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_corpus_is_refused_as_it_should_be(kind, tmp_path):
    check_all(kind, KINDS[kind], tmp_path)


def check_all(kind, least, folder):
    names = [case.name for case in cases_of(kind)]
    assert len(set(names)) == len(names) >= least
    report = run_cases([(kind, at) for at in range(len(names))], folder)
    print(f"{kind}: {len(names)} cases, peak {report.peak}, slowest {report.slowest}")
    assert not report.problems, "\n".join(report.problems)
