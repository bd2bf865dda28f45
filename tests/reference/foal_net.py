"""Foal-Net (arXiv 2408.09438) and its losses in plain PyTorch: one Python loop per sample, nothing padded, fp64.

batch: {"audio": [T_i, D_a] tensors, "vision": [T_i, D_v] tensors, "labels": int64 [N]}. Parameter names keep `video`, as in
the paper. `config` holds the fields of the FoalNet message of core/config/experiment.proto, and audio_dim, video_dim.
"""
import math

import numpy as np
import torch

import philox
from layers import attention, cross_entropy, gelu, layer_norm, linear, no_dropout, prediction_loss, unit

DEFAULTS = {
    "projection_dim": 512, "layers": 2, "heads": 4, "adapter_dim": 0, "adapter_output_dim": 0, "feature_dropout": 0.0, "projection_dropout": 0.0,
    "fusion_dropout": 0.0, "classifier_dropout": 0.0, "temperature_mode": "EXP_SCALE", "fixed_temperature": 0.07,
    "avel_targets": "ROW_MEAN", "avel_weight": 1.0, "mem_positive": "REUSE", "mem_weight": 0.1, "classes": 4,
}
DIRECTIONS = (("audio", "video"), ("video", "audio"))


def parameter_shapes(config):
    p, classes, h = config["projection_dim"], config["classes"], config["adapter_dim"]
    inputs = {"audio": config["audio_dim"], "video": config["video_dim"]}
    common = config["adapter_output_dim"]
    dims = {m: common or d for m, d in inputs.items()}
    shapes = {}

    def affine(name, out, inputs):
        shapes[name + ".weight"] = (out, inputs)
        shapes[name + ".bias"] = (out,)

    def norm(name, width):
        shapes[name + ".weight"] = (width,)
        shapes[name + ".bias"] = (width,)

    for m, d in dims.items():
        if common > 0:
            affine(f"adapter.{m}.projection", d, inputs[m])
        if h > 0:
            affine(f"adapter.{m}.input", h, d)
            affine(f"adapter.{m}.output", d, h)
            norm(f"adapter.{m}.norm", d)
        shapes[f"avel.{m}.input.weight"] = (p, d)
        shapes[f"avel.{m}.hidden.weight"] = (p, p)
        norm(f"avel.{m}.norm", p)
        affine(f"mem.{m}_head", 2, d)
    if config["temperature_mode"] != "FIXED_TEMPERATURE":
        shapes["avel.temperature"] = ()
    for query, context in DIRECTIONS:
        for layer in range(config["layers"]):
            name = f"fusion.{query}_attends_{context}.{layer}"
            affine(name + ".query", dims[query], dims[query])
            affine(name + ".key_value", 2 * dims[query], dims[context])
            affine(name + ".output", dims[query], dims[query])
            norm(name + ".norm", dims[query])
    affine("classifier", classes, dims["audio"] + dims["video"])
    return shapes


def initial_parameters(config, generator):
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name == "avel.temperature":
            value = torch.tensor(0.07 if config["temperature_mode"] == "CLAMPED_DIVISOR" else math.log(1 / 0.07))
        elif name.endswith(".projection.weight"):  # Xavier uniform
            value = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * math.sqrt(6 / sum(shape))
        elif len(shape) == 2 and not (name.startswith("adapter.") and name.endswith("output.weight")):
            value = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
        elif name.endswith("norm.weight"):
            value = torch.ones(shape)
        else:
            value = torch.zeros(shape)
        parameters[name] = value.to(torch.float64)
    return parameters


def adapt(frames, parameters, config, m):
    if config["adapter_output_dim"] > 0:
        frames = linear(frames, parameters, f"adapter.{m}.projection")
    if config["adapter_dim"] == 0:
        return frames
    hidden = gelu(linear(frames, parameters, f"adapter.{m}.input"))
    return layer_norm(frames + linear(hidden, parameters, f"adapter.{m}.output"), parameters, f"adapter.{m}.norm")


def embedding(frames, parameters, config, m, dropout, row):
    e = frames.mean(0) @ parameters[f"avel.{m}.input.weight"].T
    hidden = gelu(e) @ parameters[f"avel.{m}.hidden.weight"].T
    hidden = dropout(hidden, config["projection_dropout"], f"avel.{m}", row)
    return unit(layer_norm(e + hidden, parameters, f"avel.{m}.norm"))


def fuse(query, context, parameters, config, direction, dropout, row, prefix=""):
    """Mean over the query's frames of what is left after all layers of one direction: [D_query]."""
    for layer in range(config["layers"]):
        name = f"fusion.{direction[0]}_attends_{direction[1]}.{layer}"
        update = attention(query, context, parameters, name, config["heads"])
        update = dropout(update, config["fusion_dropout"], prefix + name, row)
        query = layer_norm(query + update, parameters, name + ".norm")
    return query.mean(0)


def similarity(x, y, parameters, config):
    cosine = x @ y.T
    mode = config["temperature_mode"]
    if mode == "FIXED_TEMPERATURE":
        return cosine / config["fixed_temperature"]
    p = parameters["avel.temperature"]
    return cosine * torch.exp(p) if mode == "EXP_SCALE" else cosine / p


def avel_loss(s_av, s_va, labels, kind):
    target = (labels[:, None] == labels[None, :]).to(s_av.dtype)
    if kind == "ROW_MEAN":
        target = target / target.sum(1, keepdim=True)
    both = torch.log_softmax(s_av, dim=1) + torch.log_softmax(s_va, dim=1)
    return -(target * both).sum() / (2 * len(labels))


def mem_negatives(scores, labels, seed, step, direction):
    """One draw per row from softmax(scores[i]) over the rows with another label (Gumbel-max), -1 where there is none."""
    scores = scores.detach().to(torch.float64).numpy()
    labels = np.asarray(labels)
    every = np.arange(len(labels))
    uniform = philox.uniform(philox.words(seed, (every[None, :], every[:, None], direction, step))[..., 0]).tolist()
    chosen = []
    for i in range(len(labels)):
        best, best_value = -1, -math.inf
        for j in range(len(labels)):
            if labels[j] == labels[i]:
                continue
            value = scores[i, j] - math.log(-math.log(uniform[i][j]))
            if best < 0 or value > best_value:
                best, best_value = j, value
        chosen.append(best)
    return chosen


def mem_loss(raw, features, fused, negatives, parameters, config, dropout):
    """raw: adapted features before dropout (a negative is a sample of its own: it gets its own feature dropout)."""
    n = len(features["audio"])
    total = 0.0
    for index, direction in enumerate(DIRECTIONS):
        query, context = direction
        logits, targets = [], []
        for i in range(n):
            matched = fused[query][i]
            if config["mem_positive"] == "RECOMPUTE":
                matched = fuse(features[query][i], features[context][i], parameters, config, direction, dropout, i,
                               "recompute.")
            logits.append(linear(matched, parameters, f"mem.{query}_head"))
            targets.append(1)
            j = negatives[index][i]
            if j >= 0:
                partner = dropout(raw[context][j], config["feature_dropout"], f"mismatched.feature.{context}", i)
                mismatched = fuse(features[query][i], partner, parameters, config, direction, dropout, i, "mismatched.")
                logits.append(linear(mismatched, parameters, f"mem.{query}_head"))
                targets.append(0)
        total = total + cross_entropy(torch.stack(logits), torch.tensor(targets)).sum() / len(targets)
    return total / 2


def forward(parameters, batch, config, seed=0, step=0, dropout=no_dropout):
    """Returns {"outputs": [N, classes], "loss": {term: scalar}, "negatives": per direction}. A loss whose weight is 0 has
    no term."""
    labels = batch["labels"]
    n = len(labels)
    inputs = {"audio": batch["audio"], "video": batch["vision"]}
    raw, features, embeddings = {}, {}, {}
    for m in ("audio", "video"):
        if any(len(frames) == 0 for frames in inputs[m]):
            raise ValueError(f"Foal-Net needs at least one frame of {m} in every sample")
        raw[m] = [adapt(frames, parameters, config, m) for frames in inputs[m]]
        features[m] = [dropout(x, config["feature_dropout"], f"feature.{m}", i) for i, x in enumerate(raw[m])]
        embeddings[m] = torch.stack(
            [embedding(x, parameters, config, m, dropout, i) for i, x in enumerate(features[m])])
    fused = {
        query: [fuse(features[query][i], features[context][i], parameters, config, (query, context), dropout, i)
                for i in range(n)]
        for query, context in DIRECTIONS
    }
    logits = []
    for i in range(n):
        joined = dropout(torch.cat([fused["audio"][i], fused["video"][i]]), config["classifier_dropout"], "classifier", i)
        logits.append(linear(joined, parameters, "classifier"))
    logits = torch.stack(logits)

    name, total = prediction_loss(logits, labels)
    loss = {name: total}
    if labels.dim() == 2:  # the same label: all classes are the same
        labels = torch.tensor([[tuple(row.tolist()) for row in labels].index(tuple(row.tolist())) for row in labels])
    s_av = similarity(embeddings["audio"], embeddings["video"], parameters, config)
    s_va = similarity(embeddings["video"], embeddings["audio"], parameters, config)
    negatives = [mem_negatives(s_av, labels, seed, step, 0), mem_negatives(s_va, labels, seed, step, 1)]
    if config["avel_weight"] != 0:
        loss["avel"] = avel_loss(s_av, s_va, labels, config["avel_targets"])
        total = total + config["avel_weight"] * loss["avel"]
    if config["mem_weight"] != 0:
        loss["mem"] = mem_loss(raw, features, fused, negatives, parameters, config, dropout)
        total = total + config["mem_weight"] * loss["mem"]
    loss["total"] = total
    return {"outputs": logits, "loss": loss, "negatives": negatives}


def project_temperature(parameters, config):
    """After an optimizer step, in place."""
    bounds = {"EXP_SCALE": (0.0, math.log(100.0)), "CLAMPED_DIVISOR": (0.001, 0.5)}.get(config["temperature_mode"])
    if bounds:
        with torch.no_grad():
            parameters["avel.temperature"].clamp_(*bounds)
