"""Losses and gradients of several ranks against the PyTorch oracle, which knows one process only."""
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import muster_program as mp  # noqa: E402
import golden  # noqa: E402
from test_models import FOAL_NET, MIAR, build  # noqa: E402

STEPS = 20
EXACT = 1e-12       # of the first step, relative to the largest element
AFTER_STEPS = 1e-9  # AdamW divides by the gradient's size: rounding grows with the steps

CASES = {param.id: param.values[0] for param in FOAL_NET + MIAR}
CHOSEN = [("foal_net-adapter-three-microbatches", 2), ("foal_net-adapter-recompute", 4), ("foal_net-EXP_SCALE-ROW_MEAN", 3),
          ("foal_net-CLAMPED_DIVISOR-ROW_SUM", 4), ("foal_net-RAW_DIVISOR-ROW_SUM", 2), ("foal_net-two-samples", 4), ("foal_net-one-label", 3),
          ("miar-missing-layers-2-tokens", 4), ("miar-missing-layers-1-frames", 2), ("miar-one-sample", 3),
          ("miar-classification-three-microbatches", 4)]


@pytest.mark.parametrize("case,ranks", CHOSEN)
def test_ranks_equal_the_oracle(case, ranks, tmp_path):
    spec = CASES[case]
    parameters, batch, config = build(spec)
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    microbatches = 0 if spec["microbatches"] == 1 else spec["microbatches"]  # 0: one per rank
    golden.write_case(parameters, batch, config, STEPS, spec["seed"], microbatches, *files[:2])
    run = mp.execute(["mpirun", "--oversubscribe", "-n", ranks, mp.built("tests/model_probe"), *files])
    assert run.returncode == 0, run.stderr
    expected, actual = golden.run_case(parameters, batch, config, STEPS, spec["seed"]), load_file(files[2])
    assert expected.keys() == actual.keys()
    if "avel" in case or spec["model"] == "foal_net":
        assert "gradients.avel.temperature" in actual
    # A gradient that is 0 by mathematics holds rounding only: it is compared with the size of the others.
    size = max(value.abs().max().item() for name, value in expected.items() if name.startswith("gradients."))
    problems = []
    for name, want in expected.items():
        first_step = name == "outputs" or name.startswith(("loss.", "gradients."))
        scale = max(want.abs().max().item(), 1e-3 * size if name.startswith("gradients.") else 1e-3)
        difference = (want - actual[name]).abs().max().item() / scale
        if not difference <= (EXACT if first_step else AFTER_STEPS):
            problems.append(f"{name}: differs by {difference:.3g}")
    assert not problems, "\n".join(problems)
