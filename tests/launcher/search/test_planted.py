"""A search finds a region that is known to be good, and does so better than chance."""
import os
from concurrent.futures import ThreadPoolExecutor

import searching as s

BASE = "late_fusion { dim: 16 hidden_dim: 16 dropout: 0 }\ndata { synthetic { kind: REGRESSION samples: 60 } }\ntraining { epochs: 2 batch_size: 16 }\n"
SPEC = s.space('parameters { path: "optimizer.learning_rate" real { low: 1e-7 high: 1 log: true } }\n', s.choices("optimizer.warmup_steps", 0, 1000000, 2000000), metric="MAE")
SEEDS, BUDGET = 10 if os.environ.get("MUSTER_FULL_TESTS") == "1" else 4, 25


def is_good(trial):
    """Learns at all (no warm-up that lasts for ever), at a rate that gets somewhere in the few steps there are and does not diverge."""
    return trial.params["optimizer.warmup_steps"] == "0" and 2e-3 <= trial.params["optimizer.learning_rate"] <= 0.5


def trials_of(folder, trials, more):
    folder.mkdir()
    s.search(s.write_search(folder, trials=trials, epochs=2, spec=SPEC, base=BASE, more=more + " keep_weights: 0\n"), folder / "search")
    return s.study(folder / "search").trials


def test_tpe_finds_the_region_that_is_good(tmp_path):
    with ThreadPoolExecutor(2) as pool:  # each search on one rank: the same result every time
        random = [pool.submit(trials_of, tmp_path / f"random{half}", SEEDS * BUDGET // 2, f"sampler {{ kind: RANDOM }} seed: {half}") for half in range(2)]
        tpe = [pool.submit(trials_of, tmp_path / f"tpe{seed}", BUDGET, f"sampler {{ kind: TPE startup_trials: 8 }} seed: {seed}") for seed in range(SEEDS)]
    found = [search.result() for search in tpe]
    drawn = random[0].result() + random[1].result()  # each trial independent of all others: as ten searches
    by_chance = [drawn[seed * BUDGET:(seed + 1) * BUDGET] for seed in range(SEEDS)]
    best, chances_best = ([min(trials, key=lambda trial: trial.value) for trials in searches] for searches in (found, by_chance))
    inside, chances_inside = ([sum(map(is_good, trials)) for trials in searches] for searches in (found, by_chance))
    print(f"in the region: TPE {inside}, random {chances_inside}\nbest: TPE {[t.value for t in best]}, random {[t.value for t in chances_best]}")
    assert sum(map(is_good, best)) >= 0.9 * SEEDS
    assert sum(inside) > 2 * sum(chances_inside)
    assert sum(trial.value for trial in best) < sum(trial.value for trial in chances_best)
