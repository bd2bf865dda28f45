"""The dropout of core/kernels/dropout.h in numpy: which elements are kept is a pure function of (seed, step, site, global row).

Element e of a sample (row-major) is kept iff uniform(word e % 4 of philox(seed, {e // 4, row, 16 + layer, step})) >= p. The
oracles name their dropout layers by text; `layer_number` says which number each has in core/models.
"""
import numpy as np
import torch

import philox

FIRST_SITE = 16
FOAL_NET_PASSES = {"": 0, "mismatched.": 4096, "recompute.": 8192}
FOAL_NET_LAYERS = {"feature.audio": 0, "feature.video": 1, "avel.audio": 2, "avel.video": 3, "classifier": 4}


def foal_net_layer_number(site, config):
    prefix = next((p for p in ("mismatched.", "recompute.") if site.startswith(p)), "")
    name = site[len(prefix):]
    if name in FOAL_NET_LAYERS:
        return FOAL_NET_PASSES[prefix] + FOAL_NET_LAYERS[name]
    _, direction, layer = name.split(".")  # fusion.<query>_attends_<context>.<layer>
    query = ("audio_attends_video", "video_attends_audio").index(direction)
    return FOAL_NET_PASSES[prefix] + 8 + 2 * int(layer) + query


def miar_layer_number(site, config):
    if site == "head":
        return 0
    _, layer, stream, which = site.split(".")  # layers.<layer>.<modality or joint>.attention or .ffn
    streams = [m for m, _ in config["modalities"]] + ["joint"]
    return 1 + (int(layer) * 64 + streams.index(stream)) * 2 + ("attention", "ffn").index(which)


def late_fusion_layer_number(site, config):
    if site == "head":
        return 0
    return 1 + [f"encoder.{m}" for m, _ in config["modalities"]].index(site)


LAYER_NUMBERS = {"foal_net": foal_net_layer_number, "miar": miar_layer_number, "late_fusion": late_fusion_layer_number}


def kept(shape, p, seed, step, site, row):
    """bool array: which elements of one sample's values stay. `site` is the number, 16 included."""
    elements = int(np.prod(shape))
    blocks = np.arange((elements + 3) // 4)
    words = philox.words(seed, (blocks, row, site, step)).reshape(-1)[:elements]
    return (philox.uniform(words) >= p).reshape(shape)


def philox_dropout(seed, step, config, sites=None):
    """The `dropout=` of an oracle for one step. `sites`, a dict, collects the number of every site that was used."""
    number = LAYER_NUMBERS[config["model"]]

    def dropout(x, p, site, row):
        if sites is not None:
            sites[site] = number(site, config)
        if p == 0:
            return x
        keep = torch.from_numpy(kept(tuple(x.shape), p, seed, step, FIRST_SITE + number(site, config), row))
        return torch.where(keep, x / (1 - p), torch.zeros((), dtype=x.dtype))

    return dropout
