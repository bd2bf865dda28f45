"""MIAR (our reading of the published abstract) and its losses in plain PyTorch: one Python loop per sample, fp64.

batch: {modality: [T_i, D_m] tensors, "labels": float64 [N] or int64 [N]}; T_i = 0: missing for that sample. `config` holds
the fields of the Miar message of core/config/experiment.proto, and modalities: [(name, feature dim)] in order.
"""
import math

import torch

from layers import attention, cross_entropy, gelu, layer_norm, linear, no_dropout, prediction_loss, unit

DEFAULTS = {
    "dim": 128, "layers": 2, "heads": 4, "ffn_dim": 512, "alignment_dim": 128, "dropout": 0.0, "alignment_source": "TOKENS",
    "alignment_temperature": 0.07, "alignment_weight": 0.1, "classes": 0,
}


def parameter_shapes(config):
    d, f, p = config["dim"], config["ffn_dim"], config["alignment_dim"]
    names = [m for m, _ in config["modalities"]]
    shapes = {}

    def affine(name, out, inputs):
        shapes[name + ".weight"] = (out, inputs)
        shapes[name + ".bias"] = (out,)

    def norm(name, width):
        shapes[name + ".weight"] = (width,)
        shapes[name + ".bias"] = (width,)

    for m, feature_dim in config["modalities"]:
        affine(f"encoder.{m}.input", d, feature_dim)
        norm(f"encoder.{m}.norm", d)
        affine(f"alignment.{m}.projection.input", d, d)
        affine(f"alignment.{m}.projection.output", p, d)
        norm(f"alignment.{m}.norm", p)
    for k in names + ["joint"]:
        shapes[f"token.{k}"] = (d,)
        norm(f"token_norm.{k}", d)
        for layer in range(config["layers"]):
            block = f"layers.{layer}.{k}"
            norm(block + ".attention_norm", d)
            affine(block + ".attention.query", d, d)
            affine(block + ".attention.key_value", 2 * d, d)
            affine(block + ".attention.output", d, d)
            norm(block + ".ffn_norm", d)
            affine(block + ".ffn.input", f, d)
            affine(block + ".ffn.output", d, f)
    shapes["gate.weight"] = (1, d)
    affine("head.input", d, (len(names) + 2) * d)
    affine("head.output", max(1, config["classes"]), d)
    return shapes


def initial_parameters(config, generator):
    def xavier(rows, columns):
        bound = math.sqrt(6 / (rows + columns))
        return (2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1) * bound

    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("token."):
            value = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
        elif name == "gate.weight" or name.endswith(".bias"):
            value = torch.zeros(shape)
        elif name.endswith("key_value.weight"):
            d = shape[1]
            value = torch.cat([xavier(d, d), xavier(d, d)])
        elif len(shape) == 2:
            value = xavier(*shape)
        else:
            value = torch.ones(shape)
        parameters[name] = value.to(torch.float64)
    return parameters


def positions(length, d):
    t = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    pos = torch.zeros(length, d, dtype=torch.float64)
    pos[:, 0::2] = torch.sin(t * frequency)
    pos[:, 1::2] = torch.cos(t * frequency)
    return pos


def sample_forward(frames, parameters, config, dropout, row):
    """frames: {modality: [T, D]} of one sample -> (output [outputs], {k: u_k}, {m: h_m})."""
    names = [m for m, _ in config["modalities"]]
    everyone = names + ["joint"]
    if all(len(frames[m]) == 0 for m in names):
        raise ValueError(f"row {row}: every modality is missing")
    h, z = {}, {}
    for m in names:
        x = linear(frames[m], parameters, f"encoder.{m}.input") + positions(len(frames[m]), config["dim"]).to(frames[m].dtype)
        h[m] = layer_norm(x, parameters, f"encoder.{m}.norm")
        z[m] = torch.cat([parameters[f"token.{m}"][None], h[m]])
    z["joint"] = parameters["token.joint"][None]

    for layer in range(config["layers"]):
        n = {k: layer_norm(z[k], parameters, f"layers.{layer}.{k}.attention_norm") for k in everyone}
        updated = {}
        for k in everyone:
            block = f"layers.{layer}.{k}"
            if k == "joint":
                context = torch.cat([n[m] for m in names])
            else:
                context = torch.cat([n[m][1:] for m in names if m != k])
            y = z[k]
            if len(context) > 0:
                update = attention(n[k], context, parameters, block + ".attention", config["heads"])
                y = y + dropout(update, config["dropout"], block + ".attention", row)
            hidden = gelu(linear(layer_norm(y, parameters, block + ".ffn_norm"), parameters, block + ".ffn.input"))
            updated[k] = y + dropout(linear(hidden, parameters, block + ".ffn.output"), config["dropout"], block + ".ffn", row)
        z = updated

    u = {k: layer_norm(z[k][0], parameters, f"token_norm.{k}") for k in everyone}
    stacked = torch.stack([u[k] for k in everyone])
    gates = torch.softmax(stacked @ parameters["gate.weight"][0], dim=0)
    x = torch.cat([gates @ stacked] + [u[k] for k in everyone])
    hidden = dropout(gelu(linear(x, parameters, "head.input")), config["dropout"], "head", row)
    return linear(hidden, parameters, "head.output"), u, h


def alignment_loss(source, present, parameters, config):
    """source: {m: list of [d] or None}, present: {m: list of bool}. Mean over all unordered pairs of modalities; a pair that
    no sample has contributes 0."""
    names = [m for m, _ in config["modalities"]]

    def embed(m, x):
        y = linear(gelu(linear(x, parameters, f"alignment.{m}.projection.input")), parameters, f"alignment.{m}.projection.output")
        return unit(layer_norm(y, parameters, f"alignment.{m}.norm"))

    pairs = [(p, q) for i, p in enumerate(names) for q in names[i + 1:]]
    total = torch.zeros((), dtype=torch.float64)
    for p, q in pairs:
        rows = [i for i in range(len(present[p])) if present[p][i] and present[q][i]]
        if not rows:
            continue
        e_p = torch.stack([embed(p, source[p][i]) for i in rows])
        e_q = torch.stack([embed(q, source[q][i]) for i in rows])
        own = torch.arange(len(rows))
        scores = e_p @ e_q.T / config["alignment_temperature"]
        total = total + (cross_entropy(scores, own) + cross_entropy(scores.T, own)).sum() / (2 * len(rows))
    return total / len(pairs)


def forward(parameters, batch, config, seed=0, step=0, dropout=no_dropout):
    """Returns {"outputs": [N, outputs], "loss": {term: scalar}}. A loss whose weight is 0 has no term."""
    names = [m for m, _ in config["modalities"]]
    labels = batch["labels"]
    n = len(labels)
    outputs, tokens, encoded = [], [], []
    for i in range(n):
        output, u, h = sample_forward({m: batch[m][i] for m in names}, parameters, config, dropout, i)
        outputs.append(output)
        tokens.append(u)
        encoded.append(h)
    outputs = torch.stack(outputs)

    name, main = prediction_loss(outputs, labels)
    loss = {name: main, "total": main}
    if config["alignment_weight"] != 0:
        present = {m: [len(batch[m][i]) > 0 for i in range(n)] for m in names}
        if config["alignment_source"] == "TOKENS":
            source = {m: [tokens[i][m] for i in range(n)] for m in names}
        else:
            source = {m: [encoded[i][m].mean(0) if present[m][i] else None for i in range(n)] for m in names}
        loss["alignment"] = alignment_loss(source, present, parameters, config)
        loss["total"] = main + config["alignment_weight"] * loss["alignment"]
    return {"outputs": outputs, "loss": loss}
