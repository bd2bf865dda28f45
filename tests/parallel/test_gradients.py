"""Losses and gradients of several ranks against the PyTorch oracle, which knows one process only.

By default five steps, and in float32 each case in one of the two modes; `./test.sh --full`: 20 steps, and both."""
import json
import os

import pytest
import torch
from safetensors.torch import load_file

import muster_program as mp
import golden
from probe_program import client
from test_models import FOAL_NET, MIAR, build

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
STEPS = 20 if FULL else 5
EPS = torch.finfo(torch.float32).eps
EXACT = 1e-12       # of the first step, relative to the largest element
AFTER_STEPS = 1e-9  # AdamW divides by the gradient's size: rounding grows with the steps

CASES = {param.id: param.values[0] for param in FOAL_NET + MIAR}
CHOSEN = [("foal_net-adapter-three-microbatches", 2), ("foal_net-adapter-recompute", 4), ("foal_net-output-dim-adapter-recompute", 3), ("foal_net-EXP_SCALE-ROW_MEAN", 3),
          ("foal_net-CLAMPED_DIVISOR-ROW_SUM", 4), ("foal_net-RAW_DIVISOR-ROW_SUM", 2), ("foal_net-two-samples", 4), ("foal_net-one-label", 3),
          ("miar-missing-layers-2-tokens", 4), ("miar-missing-layers-1-frames", 2), ("miar-one-sample", 3),
          ("miar-classification-three-microbatches", 4)]


def single(value):
    return [single(part) for part in value] if isinstance(value, list) else value.float() if value.is_floating_point() else value


def single_of(tensors):
    return {name: single(value) for name, value in tensors.items()}


@pytest.mark.parametrize("case,ranks,reproducible", [(*chosen, reproducible) for position, chosen in enumerate(CHOSEN) for reproducible in (False, True)
                                                     if FULL or position % 2 == reproducible])
def test_gradients_in_float32(case, ranks, reproducible, tmp_path):
    """The same case in single precision, against PyTorch's autograd in double precision on the same (rounded) numbers: it errs at most twice as much as
    PyTorch's autograd in single precision does on this machine, plus 4 eps (tests/helpers/rounding.h says why)."""
    spec = CASES[case]
    parameters, batch, config = build(spec)
    parameters = {name: value.float().double() for name, value in parameters.items()}
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    golden.write_case(parameters, batch, config, 1, spec["seed"], 8 if reproducible else 0, *files[:2])
    files[1].write_text(json.dumps({**json.loads(files[1].read_text()), "precision": "FP32", "reproducible": reproducible}))
    run = mp.execute(["mpirun", "--oversubscribe", "-n", ranks, *client(), "model", *files])
    assert run.returncode == 0, run.stderr
    actual = load_file(files[2])
    assert actual["gradients." + next(iter(parameters))].dtype == torch.float32
    expected = golden.run_case(parameters, batch, config, 1, spec["seed"])

    def gradient(tensors):
        return torch.cat([tensors["gradients." + name].double().flatten() for name in parameters])

    theirs = golden.run_case(single_of(parameters), single_of(batch), config, 1, spec["seed"])
    want, got = gradient(expected), gradient(actual)
    assert (want - got).norm() <= 2 * (want - gradient(theirs)).norm() + 4 * EPS * want.norm()

    def close(name, size):
        allowed = 2 * abs(expected[name] - theirs[name].double()) + 4 * EPS * size
        assert abs(expected[name] - actual[name]) <= allowed, name
    # By itself too: one number, whose error the others' size would hide.
    if "avel.temperature" in parameters:
        close("gradients.avel.temperature", max(abs(expected["gradients.avel.temperature"]), want.abs().max()))
    for name in [name for name in expected if name.startswith("loss.")]:
        close(name, max(1, abs(expected[name])))


@pytest.mark.parametrize("case,ranks", CHOSEN)
def test_ranks_equal_the_oracle(case, ranks, tmp_path):
    spec = CASES[case]
    parameters, batch, config = build(spec)
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    microbatches = 0 if spec["microbatches"] == 1 else spec["microbatches"]  # 0: one per rank
    golden.write_case(parameters, batch, config, STEPS, spec["seed"], microbatches, *files[:2])
    run = mp.execute(["mpirun", "--oversubscribe", "-n", ranks, *client(), "model", *files])
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
