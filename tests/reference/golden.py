"""Expected outputs, losses, gradients and trained weights of a small case, and the files that carry a case to the C++ side.

The program under test is called as  tests/probe model INPUT.safetensors CONFIG.json OUTPUT.safetensors :

INPUT   parameters.<name> float64; batch.<modality>.values float64 [frames, dim] and batch.<modality>.offsets int64 [N+1]
        (modalities are named as in data files: Foal-Net's video is `vision`); batch.labels float64 [N] (regression) or
        int64 [N] (classification) or float64 [N, classes] of 0s and 1s (multi-label)
CONFIG  {"model": a name of MODELS, "experiment": protobuf text with the model's and the optimizer's block,
        "modalities": names in the model's order, "classes": 0 for regression, "steps", "seed", "microbatches"}
OUTPUT  outputs [N, classes] or [N, 1], loss.total, loss.<term> (classification or multilabel, avel, mem | regression, classification
        or multilabel, alignment; a term of weight 0 is absent) and gradients.<name> (of the global batch, before clipping) of step 0;
        losses [steps]: the total per step; parameters.<name> after all steps. Everything float64.
The same batch is used in every step; the step, from 0, enters the draw of MEM's negatives.
"""
import json

import torch
from safetensors.torch import save_file

import foal_net
import late_fusion
import miar
from layers import no_dropout

MODELS = {"foal_net": foal_net, "miar": miar, "late_fusion": late_fusion}
OPTIMIZER = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01,
             "decay_scope": "MATRICES", "clip_norm": 0.0}
NOT_IN_EXPERIMENT = {"model", "optimizer", "modalities", "audio_dim", "video_dim"}


def full_config(model, optimizer=None, **fields):
    return {"model": model, **MODELS[model].DEFAULTS, **fields, "optimizer": {**OPTIMIZER, **(optimizer or {})}}


def random_parameters(config, generator):
    """Larger than the initial values, and nothing is 0 or 1, so that every parameter matters to every output."""
    parameters = MODELS[config["model"]].initial_parameters(config, generator)
    for name, value in parameters.items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if name == "avel.temperature":
            continue
        elif value.dim() == 2:
            parameters[name] = noise / value.shape[1] ** 0.5
        elif name.endswith("norm.weight"):
            parameters[name] = 1 + 0.2 * noise
        else:
            parameters[name] = 0.2 * noise
    return parameters


def zero_key_bias(gradients):
    """The bias of the keys shifts all scores of a query alike: its true gradient is 0, what is left is rounding."""
    for name, gradient in gradients.items():
        if name.endswith("key_value.bias"):
            gradient[: len(gradient) // 2] = 0


def run_case(params, batch, config, steps, seed=1, dropout_of_step=lambda step: no_dropout):
    """Trains `steps` steps on one batch; returns the OUTPUT tensors of the contract above. `params` stays as it is."""
    model = MODELS[config["model"]]
    options = config["optimizer"]
    parameters = {name: value.detach().clone().requires_grad_() for name, value in params.items()}

    everything = options["decay_scope"] == "ALL_PARAMETERS"
    decayed = [p for p in parameters.values() if everything or p.dim() >= 2]
    others = [p for p in parameters.values() if not (everything or p.dim() >= 2)]
    groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=options["learning_rate"],
                                  betas=(options["beta1"], options["beta2"]), eps=options["epsilon"])
    result, losses = {}, []
    for step in range(steps):
        run = model.forward(parameters, batch, config, seed=seed, step=step, dropout=dropout_of_step(step))
        optimizer.zero_grad()
        run["loss"]["total"].backward()
        for p in parameters.values():
            if p.grad is None:  # an unused parameter counts as one with gradient 0: it still decays
                p.grad = torch.zeros_like(p)
        zero_key_bias({name: p.grad for name, p in parameters.items()})
        losses.append(run["loss"]["total"].detach())
        if step == 0:
            result["outputs"] = run["outputs"].detach().clone()
            result.update({f"loss.{term}": value.detach().clone() for term, value in run["loss"].items()})
            result.update({f"gradients.{name}": p.grad.clone() for name, p in parameters.items()})
        if options["clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), options["clip_norm"])
        optimizer.step()
        if config["model"] == "foal_net":
            foal_net.project_temperature(parameters, config)
    result["losses"] = torch.stack(losses)
    result.update({f"parameters.{name}": p.detach().clone() for name, p in parameters.items()})
    return result


def experiment_text(config):
    """The model's and the optimizer's block in Protobuf text format, every field set."""
    def block(name, fields):
        lines = [f"  {key}: {value}" for key, value in fields.items()]
        return "\n".join([name + " {", *lines, "}"])

    model = {key: value for key, value in config.items() if key not in NOT_IN_EXPERIMENT}
    return block(config["model"], model) + "\n" + block("optimizer", config["optimizer"]) + "\n"


def write_case(params, batch, config, steps, seed, microbatches, input_path, config_path):
    tensors = {f"parameters.{name}": value.contiguous() for name, value in params.items()}
    modalities = ["audio", "vision"] if config["model"] == "foal_net" else [m for m, _ in config["modalities"]]
    for m in modalities:
        lengths = torch.tensor([len(frames) for frames in batch[m]], dtype=torch.int64)
        tensors[f"batch.{m}.values"] = torch.cat(batch[m]).contiguous()
        tensors[f"batch.{m}.offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tensors["batch.labels"] = batch["labels"]
    save_file(tensors, input_path)
    with open(config_path, "w") as file:
        json.dump({"model": config["model"], "experiment": experiment_text(config), "modalities": modalities,
                   "classes": config["classes"], "steps": steps, "seed": seed, "microbatches": microbatches}, file)
