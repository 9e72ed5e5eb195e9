"""Looks for test images of a task in a corpus, by source clip and by perceptual hash, before anything is trained."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from anaus_bench.corpus.packed import PackedCorpus, open_corpus
from anaus_bench.datasets.audit import Part, near_between, part_of, shared_clips
from anaus_bench.datasets.near_duplicates import BITS, NEAR, close_blocks, image_hashes, perceptual_hash
from anaus_bench.errors import LeakageError
from anaus_bench.interfaces import StageContext, StageInputs
from anaus_bench.planning.specs import AuditSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import open_task


def run(spec: AuditSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `audit.json`: what was found, and the rows of the corpus that a policy of `exclude` leaves out.

    Raises:
        LeakageError: Something was found and the policy is `refuse`.
    """
    task, dataset, index = open_task(spec, inputs, registry)
    corpus = open_corpus(inputs.folders["corpus"])
    known = _part_of_corpus(corpus)
    tests = part_of(index, image_hashes(dataset, index), dataset.groups(index))
    between = {**near_between(known, tests), "clips": shared_clips(known.clips, tests.clips)}
    clips = {clip for clip, _ in between["clips"]}
    rows = {row for row, clip in enumerate(known.clips) if clip in clips}
    for near, _ in close_blocks(known.hashes, tests.hashes, NEAR):
        rows.update(near.tolist())
    if rows and spec.overlap == "refuse":
        examples = [f"{corpus_id} ~ {test_id} ({bits} bits)" for corpus_id, test_id, bits in between["examples"]]
        examples += [f"clips {ours} = {theirs}" for ours, theirs in between["clips"]]
        raise LeakageError(
            f"{len(rows)} of {len(corpus)} corpus images stand in the test data of {task.name!r} "
            f"({between['images']} of {len(index.samples)} test images), such as {'; '.join(examples[:3])}; "
            "--set corpus.overlap=exclude leaves them out, corpus.overlap=allow keeps them and says so"
        )
    (ctx.out / "audit.json").write_text(
        json.dumps({"overlap": spec.overlap, "rows": sorted(rows), **between}, indent=1, ensure_ascii=False)
    )
    return {
        "corpus_images": len(corpus),
        "overlapping_corpus_images": len(rows),
        "overlapping_test_images": between["images"],
        "shared_clips": len(clips),
        "overlap": spec.overlap,
    }


def _part_of_corpus(corpus: PackedCorpus) -> Part:
    hashes = np.empty((len(corpus), BITS // 8), dtype=np.uint8)
    for row, entry in enumerate(corpus.entries):
        top, left, height, width = entry.box
        hashes[row] = perceptual_hash(np.asarray(corpus.images[row, top : top + height, left : left + width]))
    return Part(
        hashes,
        [f"{entry.dataset}:{entry.sample_id}" for entry in corpus.entries],
        [entry.group_id for entry in corpus.entries],
        [None] * len(corpus),
        [None if e.video_id is None else e.video_id.removeprefix(f"{e.dataset}:") for e in corpus.entries],
    )
