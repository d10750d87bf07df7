"""What engines must compute, recorded on the export machine.

Each variant is compared with itself on the CPU: what its weights of 8 or 4 bits cost was judged by
the gate. So a board needs neither the reference nor memory to load a graph on its CPU.
"""

from __future__ import annotations

from functools import partial

from segagent_rt.bundle.bundle import Part
from segagent_rt.engine_cache.golden_example import pack_examples
from segagent_rt.engine_cache.golden_io import record_variant
from segagent_rt.engine_cache.selection import GOLDEN
from segagent_rt.types import ProgressReporter, Session
from segagent_rt_export.gate.streaming import CPU, LockstepRunner, LockstepSession


def write_golden(
    part: Part, variant: str, report_progress: ProgressReporter, *, streamed: bool = False
) -> dict[str, str]:
    """Record the golden examples of a variant and write them into its folder.

    Args:
        part: holds the variant.
        variant: its name.
        report_progress: is told what is going on.
        streamed: whether the graphs run in pieces.

    Returns:
        The file of each role, relative to the part. A role whose examples are too large has none.
    """
    report_progress(f"recording golden outputs of {variant}")
    runner = LockstepRunner(report_progress)

    def open_session(part: Part, role: str) -> Session:
        if not streamed:
            return part.session(role, CPU, variant)
        return LockstepSession(part.graphs(role, variant)[0].path, runner)

    record = partial(record_variant, part, variant, open_session)
    examples = runner.run_all([record])[0] if streamed else record()
    found = dict[str, str]()
    for role, recorded in examples.items():
        content = pack_examples(recorded)
        if recorded and len(content) <= GOLDEN:
            file = f"{variant}/golden.{role}.npz"
            (part.folder / file).write_bytes(content)
            found[role] = file
    return found
