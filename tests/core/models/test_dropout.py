"""Dropout of the C++ models against the oracles with a numpy Philox, in fp64: the masks hang on seed, step, site and global row only,
so microbatches and ranks cannot change them, and no two dropout layers or passes share one."""
import os
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.torch import load_file

import golden
from dropout import FIRST_SITE, kept, philox_dropout
from probe_program import client, probe
from test_models import DISJOINT, MISSING, PAIR, UNEVEN, build, compare, foal, late_fusion_case, miar_case

STEPS = 6
ALL = dict(feature_dropout=0.2, projection_dropout=0.5, fusion_dropout=0.3, classifier_dropout=0.4)
LENGTHS = {"audio": [1, 9, 2, 5, 1, 3, 4], "vision": [6, 1, 1, 2, 8, 3, 1]}

CASES = [
    *(foal(f"only-{field}", microbatches=3, **{field: 0.5}) for field in ALL),
    foal("all-reuse", **ALL),
    foal("all-reuse-three-microbatches", microbatches=3, **ALL),
    foal("all-recompute", mem_positive="RECOMPUTE", **ALL),
    foal("all-recompute-three-microbatches", mem_positive="RECOMPUTE", microbatches=3, **ALL),
    foal("all-adapter-three-microbatches", adapter_dim=6, microbatches=3, **ALL),
    foal("all-adapter-recompute", adapter_dim=6, mem_positive="RECOMPUTE", microbatches=2, **ALL),
    foal("all-output-dim", adapter_output_dim=10, dims=UNEVEN, mem_positive="RECOMPUTE", microbatches=2, **ALL),
    foal("all-uneven-lengths", lengths=LENGTHS, microbatches=3, layers=3, seed=(1 << 40) + 7, **ALL),
    foal("all-one-label", labels=[2] * 7, mem_positive="RECOMPUTE", microbatches=3, **ALL),
    foal("all-no-avel-no-mem", avel_weight=0.0, mem_weight=0.0, microbatches=3, **ALL),
    *(miar_case(f"{source.lower()}-{microbatches}", alignment_source=source, dropout=0.3, microbatches=microbatches)
      for source in ("TOKENS", "FRAMES") for microbatches in (1, 3)),
    *(miar_case(f"missing-{source.lower()}-layers-{layers}", alignment_source=source, dropout=0.3, microbatches=3, layers=layers,
                lengths=MISSING) for source in ("TOKENS", "FRAMES") for layers in (1, 3)),
    miar_case("never-both", dims=PAIR, lengths=DISJOINT, dropout=0.5, microbatches=2),
    *(late_fusion_case(f"late-fusion-{microbatches}", dropout=0.3, microbatches=microbatches, lengths=MISSING) for microbatches in (1, 3)),
    late_fusion_case("late-fusion-classes-large-seed", classes=3, dropout=0.9, microbatches=7, seed=(1 << 63) + 5),
    miar_case("classes-large-seed", classes=3, dropout=0.9, microbatches=7, seed=(1 << 63) + 5),
]
ON_RANKS = [
    (2, foal("ranks-2", adapter_dim=6, mem_positive="RECOMPUTE", microbatches=3, **ALL)),
    (3, miar_case("ranks-3", dropout=0.3, lengths=MISSING)),
    (4, late_fusion_case("ranks-4", dropout=0.3, lengths=MISSING, microbatches=5)),
]


def check(spec, tmp_path, call=probe):
    parameters, batch, config = build(spec)
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    golden.write_case(parameters, batch, config, STEPS, spec["seed"], spec["microbatches"], *files[:2])
    run = call("model", *files)
    assert run.returncode == 0, f"the probe exits with {run.returncode}\n{run.stderr}"
    sites = {}
    expected = golden.run_case(parameters, batch, config, STEPS, spec["seed"],
                               lambda step: philox_dropout(spec["seed"], step, config, sites))
    assert len(set(sites.values())) == len(sites), f"two dropout layers share a number: {sites}"
    problems = compare(expected, load_file(files[2]))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("spec", CASES)
def test_dropout_equals_oracle(spec, tmp_path):
    check(spec, tmp_path)


@pytest.mark.parametrize("ranks, spec", [pytest.param(n, *s.values, id=s.id) for n, s in ON_RANKS])
def test_ranks_do_not_change_dropout(ranks, spec, tmp_path):
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    assert "OMPI_ALLOW_RUN_AS_ROOT" in os.environ or os.geteuid() != 0, "run this through ctest"
    check(spec, tmp_path, lambda *words: subprocess.run([mpirun, "-n", str(ranks), *client(), *words], capture_output=True, text=True, timeout=60))


def test_oracle_masks_differ_and_keep_the_right_share():
    shape, p = (50, 400), 0.3
    keys = {"first": (1, 0, FIRST_SITE, 0), "seed": (2, 0, FIRST_SITE, 0), "high half of seed": (1 + (1 << 32), 0, FIRST_SITE, 0),
            "step": (1, 1, FIRST_SITE, 0), "site": (1, 0, FIRST_SITE + 1, 0), "row": (1, 0, FIRST_SITE, 1)}
    masks = {name: kept(shape, p, *key) for name, key in keys.items()}
    n = 50 * 400
    for name, mask in masks.items():
        assert abs(mask.mean() - 0.7) < 5 * np.sqrt(0.21 / n), name
    names = list(masks)
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            agreement = (masks[a] == masks[b]).mean()
            assert abs(agreement - (0.49 + 0.09)) < 5 * np.sqrt(0.58 * 0.42 / n), (a, b)
