"""The C++ models against the PyTorch oracle, in fp64: outputs, loss terms, gradients, weights after some steps.

Every case takes 5 steps; those of LONG, and with MUSTER_FULL_TESTS=1 all, take 20. What a case is about (a shape, a loss, a
bound) shows in the first step; AdamW's own arithmetic over many steps is compared with PyTorch's in core/optim.
"""
import math
import os

import pytest
import torch
from probe_program import probe
from safetensors.torch import load_file

import golden

STEPS, MANY_STEPS = 5, 20
# Every model, and whatever changes from step to step: drawn negatives, learnt temperatures on their bounds, clipping, decay.
LONG = {"foal_net-EXP_SCALE-ROW_MEAN", "foal_net-official", "foal_net-clamped-upper-bound", "foal_net-clipped",
        "foal_net-decay-on-everything", "miar-missing-layers-2-frames", "miar-clipped", "late_fusion-clipped",
        "late_fusion-missing-classification-three-microbatches"}
TOLERANCE = 1e-9


def case(name, model, lengths=None, labels=None, n=7, classes=4, temperature=None, microbatches=1, optimizer=None, dims=None,
         seed=1, **fields):
    return pytest.param(dict(name=name, model=model, lengths=lengths, labels=labels, n=n, classes=classes, seed=seed,
                             temperature=temperature, microbatches=microbatches, optimizer=optimizer, dims=dims,
                             fields=fields), id=f"{model}-{name}")


SMALL_FOAL_NET = dict(projection_dim=16, heads=2, layers=2)
SMALL_MIAR = dict(dim=8, heads=2, ffn_dim=12, alignment_dim=6)


def foal(name, **options):
    return case(name, "foal_net", **{**SMALL_FOAL_NET, **options})


def miar_case(name, **options):
    return case(name, "miar", **{**SMALL_MIAR, "classes": 0, **options})


def late_fusion_case(name, **options):
    return case(name, "late_fusion", **{"dim": 6, "hidden_dim": 5, "classes": 0, **options})


LN100 = math.log(100.0)
UNEVEN = {"audio": 7, "vision": 5}  # widths that two heads cannot share
FOAL_NET = [
    *(foal(f"{mode}-{targets}", temperature_mode=mode, avel_targets=targets)
      for mode in ("EXP_SCALE", "RAW_DIVISOR", "CLAMPED_DIVISOR", "FIXED_TEMPERATURE") for targets in ("ROW_MEAN", "ROW_SUM")),
    foal("one-sample", n=1),
    foal("two-samples", n=2, labels=[0, 1]),
    foal("two-samples-three-microbatches", n=2, labels=[0, 1], microbatches=3),
    foal("one-label", labels=[2] * 7),
    foal("one-label-row-sum-recompute", labels=[1] * 7, avel_targets="ROW_SUM", mem_positive="RECOMPUTE", microbatches=3),
    foal("length-one", lengths={"audio": [1] * 7, "vision": [1] * 7}),
    foal("uneven-lengths", lengths={"audio": [1, 9, 2, 5, 1, 3, 4], "vision": [6, 1, 1, 2, 8, 3, 1]}, microbatches=3),
    foal("two-classes", classes=2),
    foal("three-classes", classes=3, microbatches=2),
    foal("five-classes", classes=5, seed=(1 << 40) + 7),
    foal("adapter", adapter_dim=6),
    foal("adapter-three-microbatches", adapter_dim=6, microbatches=3),
    foal("adapter-recompute", adapter_dim=6, mem_positive="RECOMPUTE", microbatches=2),
    foal("adapter-one-label", adapter_dim=6, labels=[3] * 7),
    foal("adapter-no-mem", adapter_dim=6, mem_weight=0.0, microbatches=3),
    foal("adapter-no-avel", adapter_dim=6, avel_weight=0.0),
    foal("output-dim", adapter_output_dim=10, dims=UNEVEN, microbatches=3),
    foal("output-dim-adapter-recompute", adapter_output_dim=10, adapter_dim=6, dims=UNEVEN, mem_positive="RECOMPUTE", microbatches=2),
    foal("output-dim-no-mem-no-avel", adapter_output_dim=4, avel_weight=0.0, mem_weight=0.0),
    foal("recompute", mem_positive="RECOMPUTE"),
    foal("no-mem", mem_weight=0.0),
    foal("no-avel", avel_weight=0.0, microbatches=3),
    foal("class-loss-only", avel_weight=0.0, mem_weight=0.0),
    foal("other-weights", avel_weight=0.3, mem_weight=1.7),
    foal("three-microbatches", microbatches=3),
    foal("seven-microbatches", microbatches=7),
    foal("more-microbatches-than-samples", microbatches=9, n=5),
    foal("one-layer-one-head", layers=1, heads=1),
    foal("three-layers-four-heads", layers=3, heads=4),
    foal("projection-narrower-than-features", projection_dim=5),
    foal("exp-scale-upper-bound", temperature=LN100 + 0.5, optimizer=dict(learning_rate=0.01)),
    foal("exp-scale-lower-bound", temperature=-0.5, optimizer=dict(learning_rate=0.01)),
    foal("clamped-upper-bound", temperature_mode="CLAMPED_DIVISOR", temperature=0.7, optimizer=dict(learning_rate=0.01)),
    foal("clamped-lower-bound", temperature_mode="CLAMPED_DIVISOR", temperature=-0.02),
    foal("raw-divisor-below-zero", temperature_mode="RAW_DIVISOR", temperature=-0.5),
    foal("fixed-temperature-0.5", temperature_mode="FIXED_TEMPERATURE", fixed_temperature=0.5),
    foal("decay-on-everything", optimizer=dict(decay_scope="ALL_PARAMETERS", weight_decay=0.2), microbatches=3),
    foal("clipped", optimizer=dict(clip_norm=0.5), microbatches=3),
    foal("multilabel", labels="multilabel", microbatches=3),
    foal("multilabel-one-class-row-sum", labels="multilabel", classes=1, avel_targets="ROW_SUM", adapter_dim=6),
    foal("official", temperature_mode="RAW_DIVISOR", avel_targets="ROW_SUM", mem_positive="RECOMPUTE", microbatches=3,
         optimizer=dict(decay_scope="ALL_PARAMETERS")),
]

PAIR = {"text": 5, "audio": 3}
FOUR = {"text": 5, "audio": 3, "vision": 4, "pose": 2}
MISSING = {"text": [3, 0, 2, 0, 4, 1, 0], "audio": [0, 5, 2, 0, 1, 0, 3], "vision": [2, 4, 0, 3, 0, 0, 6]}
DISJOINT = {"text": [3, 0, 2, 0, 4, 1, 0], "audio": [0, 5, 0, 2, 0, 0, 3]}
MIAR = [
    *(miar_case(f"layers-{layers}-{source.lower()}", layers=layers, alignment_source=source)
      for layers in (1, 2, 3) for source in ("TOKENS", "FRAMES")),
    *(miar_case(f"missing-layers-{layers}-{source.lower()}", layers=layers, alignment_source=source, lengths=MISSING,
                microbatches=microbatches)
      for layers, microbatches in ((1, 1), (2, 3), (3, 1)) for source in ("TOKENS", "FRAMES")),
    miar_case("two-modalities", dims=PAIR),
    miar_case("two-modalities-missing", dims=PAIR, lengths={"text": [3, 0, 2, 0, 4, 1, 0], "audio": [1, 5, 2, 2, 1, 0, 3]}),
    miar_case("two-modalities-never-both", dims=PAIR, lengths=DISJOINT, microbatches=3),
    miar_case("two-modalities-never-both-frames", dims=PAIR, lengths=DISJOINT, alignment_source="FRAMES"),
    miar_case("four-modalities", dims=FOUR),
    miar_case("four-modalities-frames-classes", dims=FOUR, alignment_source="FRAMES", classes=3, microbatches=3),
    miar_case("other-names-and-order", dims={"zeta": 4, "alpha": 2, "mid": 6}),
    miar_case("classification", classes=4),
    miar_case("classification-three-microbatches", classes=2, microbatches=3),
    miar_case("classification-missing", classes=3, lengths=MISSING),
    miar_case("multilabel-missing", labels="multilabel", classes=5, lengths=MISSING, microbatches=3),
    miar_case("multilabel-one-class", labels="multilabel", classes=1),
    miar_case("no-alignment", alignment_weight=0.0),
    miar_case("no-alignment-missing-three-microbatches", alignment_weight=0.0, lengths=MISSING, microbatches=3),
    miar_case("other-alignment", alignment_weight=1.5, alignment_temperature=0.4),
    miar_case("three-microbatches", microbatches=3),
    miar_case("more-microbatches-than-samples", microbatches=9, n=5),
    miar_case("one-sample", n=1),
    miar_case("two-samples", n=2, microbatches=2),
    miar_case("length-one", lengths={m: [1] * 7 for m in MISSING}),
    miar_case("one-head", heads=1, dim=6),
    miar_case("four-heads", heads=4),
    miar_case("decay-on-everything", optimizer=dict(decay_scope="ALL_PARAMETERS", weight_decay=0.2)),
    miar_case("clipped", optimizer=dict(clip_norm=0.3), microbatches=3),
]

LATE_FUSION = [
    late_fusion_case("regression"),
    late_fusion_case("classification", classes=4),
    late_fusion_case("classification-three-microbatches", classes=2, microbatches=3),
    late_fusion_case("missing", lengths=MISSING),
    late_fusion_case("missing-classification-three-microbatches", lengths=MISSING, classes=3, microbatches=3),
    late_fusion_case("multilabel-three-microbatches", labels="multilabel", classes=3, microbatches=3),
    late_fusion_case("one-modality", dims={"audio": 3}),
    late_fusion_case("one-modality-classes", dims={"audio": 3}, classes=3, microbatches=2),
    late_fusion_case("two-modalities-never-both", dims=PAIR, lengths=DISJOINT, microbatches=3),
    late_fusion_case("four-modalities", dims=FOUR),
    late_fusion_case("other-names-and-order", dims={"zeta": 4, "alpha": 2, "mid": 6}),
    late_fusion_case("more-microbatches-than-samples", microbatches=9, n=5),
    late_fusion_case("one-sample", n=1),
    late_fusion_case("length-one", lengths={m: [1] * 7 for m in MISSING}),
    late_fusion_case("decay-on-everything", optimizer=dict(decay_scope="ALL_PARAMETERS", weight_decay=0.2)),
    late_fusion_case("clipped", optimizer=dict(clip_norm=0.3), microbatches=3),
]


def build(spec):
    generator = torch.Generator().manual_seed(sum(map(ord, spec["name"])))
    n, classes = spec["n"], spec["classes"]
    if spec["model"] == "foal_net":
        dims = spec["dims"] or {"audio": 12, "vision": 8}
        config = golden.full_config("foal_net", spec["optimizer"], audio_dim=dims["audio"], video_dim=dims["vision"], classes=classes,
                                    **spec["fields"])
    else:
        dims = spec["dims"] or {"text": 5, "audio": 3, "vision": 4}
        config = golden.full_config(spec["model"], spec["optimizer"], modalities=list(dims.items()), classes=classes, **spec["fields"])
    batch = {}
    for m, d in dims.items():
        if spec["lengths"]:
            lengths = spec["lengths"][m][:n]
        else:
            lengths = torch.randint(1, 7, (n,), generator=generator).tolist()
        batch[m] = [torch.randn(length, d, generator=generator, dtype=torch.float32).double() for length in lengths]  # files hold float32
    if classes == 0:
        batch["labels"] = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    elif spec["labels"] == "multilabel":
        batch["labels"] = torch.randint(0, 2, (n, classes), generator=generator).double()
        batch["labels"][-1] = batch["labels"][0]  # at least two are the same
    elif spec["labels"]:
        batch["labels"] = torch.tensor(spec["labels"])
    else:
        batch["labels"] = torch.arange(n) % classes
    parameters = golden.random_parameters(config, generator)
    if spec["temperature"] is not None:
        parameters["avel.temperature"] = torch.tensor(spec["temperature"], dtype=torch.float64)
    return parameters, batch, config


def compare(expected, actual):
    """Every tensor of the contract, relative to the largest element of the tensor; all differences are listed at once."""
    problems = []
    for name in sorted(set(expected) | set(actual)):
        if name not in expected or name not in actual:
            problems.append(f"{name}: {'not expected' if name not in expected else 'missing from the output'}")
            continue
        want, got = expected[name], actual[name]
        if want.shape != got.shape or got.dtype != torch.float64:
            problems.append(f"{name}: {got.dtype} {list(got.shape)}, expected float64 {list(want.shape)}")
            continue
        difference = (want - got).abs().max().item() if want.numel() else 0.0
        limit = TOLERANCE * max(want.abs().max().item() if want.numel() else 0.0, 1e-3)
        if not difference <= limit:
            problems.append(f"{name}: differs by {difference:.3g}, allowed {limit:.3g}")
    return problems


@pytest.mark.parametrize("spec", FOAL_NET + MIAR + LATE_FUSION)
def test_model_equals_oracle(spec, tmp_path):
    parameters, batch, config = build(spec)
    many = os.environ.get("MUSTER_FULL_TESTS") == "1" or f"{spec['model']}-{spec['name']}" in LONG
    steps = MANY_STEPS if many else STEPS
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    golden.write_case(parameters, batch, config, steps, spec["seed"], spec["microbatches"], *files[:2])
    run = probe("model", *files)
    assert run.returncode == 0, f"the probe exits with {run.returncode}\n{run.stderr}"
    expected = golden.run_case(parameters, batch, config, steps, spec["seed"])
    assert all(torch.isfinite(value).all() for value in expected.values())
    assert set(parameters) == {key[len("gradients."):] for key in expected if key.startswith("gradients.")}
    problems = compare(expected, load_file(files[2]))
    assert not problems, "\n".join(problems)


def test_the_long_cases_exist():
    assert LONG <= {case.id for case in FOAL_NET + MIAR + LATE_FUSION}
