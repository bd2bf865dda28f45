"""Late fusion and its loss in plain PyTorch: one Python loop per sample, fp64.

batch: {modality: [T_i, D_m] tensors, "labels": float64 [N] or int64 [N]}; T_i = 0: missing for that sample, which counts as a
mean of zeros. `config` holds the fields of the LateFusion message of core/config/experiment.proto, and modalities:
[(name, feature dim)] in order.
"""
import math

import torch

from layers import linear, no_dropout, prediction_loss

DEFAULTS = {"dim": 64, "hidden_dim": 64, "dropout": 0.0, "classes": 0}


def parameter_shapes(config):
    widths = {f"encoder.{m}": (config["dim"], feature_dim) for m, feature_dim in config["modalities"]}
    widths["head.input"] = (config["hidden_dim"], config["dim"] * len(config["modalities"]))
    widths["head.output"] = (max(1, config["classes"]), config["hidden_dim"])
    shapes = {}
    for name, (out, inputs) in widths.items():
        shapes[name + ".weight"] = (out, inputs)
        shapes[name + ".bias"] = (out,)
    return shapes


def initial_parameters(config, generator):
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".bias"):
            parameters[name] = torch.zeros(shape, dtype=torch.float64)
        else:
            bound = math.sqrt(6 / sum(shape))
            parameters[name] = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound
    return parameters


def sample_forward(frames, parameters, config, dropout, row):
    """frames: {modality: [T, D]} of one sample -> output [outputs]."""
    summaries = []
    for m, feature_dim in config["modalities"]:
        mean = frames[m].mean(0) if len(frames[m]) > 0 else torch.zeros(feature_dim, dtype=torch.float64)
        encoded = torch.clamp(linear(mean, parameters, f"encoder.{m}"), min=0)
        summaries.append(dropout(encoded, config["dropout"], f"encoder.{m}", row))
    hidden = torch.clamp(linear(torch.cat(summaries), parameters, "head.input"), min=0)
    return linear(dropout(hidden, config["dropout"], "head", row), parameters, "head.output")


def forward(parameters, batch, config, seed=0, step=0, dropout=no_dropout):
    """Returns {"outputs": [N, outputs], "loss": {term: scalar}}."""
    names = [m for m, _ in config["modalities"]]
    labels = batch["labels"]
    n = len(labels)
    outputs = torch.stack([sample_forward({m: batch[m][i] for m in names}, parameters, config, dropout, i) for i in range(n)])
    name, total = prediction_loss(outputs, labels)
    return {"outputs": outputs, "loss": {name: total, "total": total}}
