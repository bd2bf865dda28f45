"""The tables of `muster study`, checked by scikit-learn, NumPy and SciPy from the predictions that the runs leave behind."""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from studying import HEADER, STUDY, TRIVIAL, compared, compared_by_scipy, finished, holm, mp, predictions, rows, run, ua, wa, write_study  # noqa: F401


def tables_by(finished, folder, more, change=None, code=0):
    """The finished study's trainings, changed and compared in another way; where the tables are, and what was printed."""
    directory = folder / "study"
    shutil.copytree(finished[0], directory)
    if change:
        change(directory / "cells")
    (folder / "base.txtpb").write_text((finished[0].parent / "base.txtpb").read_text())
    (folder / "small.txtpb").write_text(HEADER + STUDY + more)
    result = run(folder / "small.txtpb", directory, "--only-tables", code=code)
    return directory, result.stdout + result.stderr


@pytest.mark.parametrize("metric, value_of", [("UA", ua), ("WA", wa)])
def test_the_table_is_what_the_predictions_say(finished, metric, value_of):
    directory, *_ = finished
    table = {(row["variant"], row["fold"]): row for row in rows(directory / "table.csv") if row["metric"] == metric}
    pooled = {}
    for variant in ("base", "no_dropout", "slow"):
        by_fold = np.array([[value_of(predictions(directory, variant, seed, fold)) for seed in (1, 2, 3)] for fold in (0, 1)])
        pooled[variant] = [value_of(predictions(directory, variant, seed, 0) + predictions(directory, variant, seed, 1)) for seed in (1, 2, 3)]
        expected = {"pooled": pooled[variant], "0": by_fold[0], "1": by_fold[1], "mean of folds": by_fold.mean(axis=1)}
        for fold, values in expected.items():
            row = table[variant, fold]
            assert int(row["n"]) == len(values)
            assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-14)
            assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-14)
    differences, p, corrected = compared_by_scipy(pooled["base"], [pooled["no_dropout"], pooled["slow"]])
    for place, variant in enumerate(("no_dropout", "slow")):
        row = table[variant, "pooled"]
        assert int(row["pairs"]) == 3
        assert float(row["difference"]) == pytest.approx(differences[place].mean(), abs=1e-12)
        assert float(row["p"]) == pytest.approx(p[place], abs=1e-12) and float(row["p_holm"]) == pytest.approx(corrected[place], abs=1e-12)
        interval = stats.bootstrap((differences[place],), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
        assert (float(row["low"]), float(row["high"])) == pytest.approx(tuple(interval), abs=1e-12)


@pytest.mark.parametrize("metric, value_of", [("UA", ua), ("WA", wa)])
def test_the_trivial_baseline_is_what_a_constant_scores(finished, metric, value_of):
    """With folds: every sample gets the majority class of its own fold's training samples."""
    directory, printed, _ = finished

    def constant(seed, fold):
        run_ = directory / "cells/base" / f"seed-{seed}-fold-{fold}"
        return [{**row, "prediction": mp.result(run_)["trivial_baselines"]["prediction"]} for row in predictions(directory, "base", seed, fold)]

    by_fold = np.array([[value_of(constant(seed, fold)) for seed in (1, 2, 3)] for fold in (0, 1)])
    expected = {"pooled": [value_of(constant(seed, 0) + constant(seed, 1)) for seed in (1, 2, 3)], "0": by_fold[0], "1": by_fold[1], "mean of folds": by_fold.mean(axis=1)}
    table = {row["fold"]: row for row in rows(directory / "table.csv") if (row["variant"], row["metric"]) == (TRIVIAL, metric)}
    assert set(table) == set(expected)
    for fold, values in expected.items():
        assert int(table[fold]["n"]) == len(values) and float(table[fold]["mean"]) == pytest.approx(np.mean(values), abs=1e-14)
    for name in ("table.txt", "table.md", "table.tex"):
        text = (directory / name).read_text()
        assert "trivial: majority class" in text and f"{np.mean(expected['pooled']):.4f} " in text
        if metric == "UA":  # the one of the table of folds
            assert all(f"{np.mean(values):.4f} " in text for values in expected.values())
    assert "trivial: what predicting the majority class for every test sample of whole_model scores." in printed


def values_by_unit(directory, pairs):
    """UA of each variant: [seed], of both folds together, or [fold][seed]. NaN where a training is missing."""
    found = {}
    for variant in ("base", "no_dropout", "slow"):
        there = [[predictions(directory, variant, seed, fold) if (directory / "cells" / variant / f"seed-{seed}-fold-{fold}").exists() else [] for seed in (1, 2, 3)] for fold in (0, 1)]
        if pairs == "SEEDS":
            found[variant] = np.array([ua(there[0][seed] + there[1][seed]) if there[0][seed] and there[1][seed] else np.nan for seed in range(3)])
        else:
            found[variant] = np.array([[ua(samples) if samples else np.nan for samples in fold] for fold in there])
    return found


def paired(values, variant, pairs):
    """The values of base and variant that are compared."""
    base, other = values["base"], values[variant]
    both = np.isfinite(base) & np.isfinite(other)
    if pairs == "FOLDS":
        return [np.array([np.mean(side[fold][both[fold]]) for fold in (0, 1)]) for side in (base, other)]
    return base[both], other[both]


# With nothing missing, SEEDS are in the test above and SEEDS_AND_FOLDS in the one below: here every day what is harder.
@pytest.mark.parametrize("missing", [*([[]] if os.environ.get("MUSTER_FULL_TESTS") == "1" else []), ["slow/seed-2-fold-1", "base/seed-3-fold-0"]])
@pytest.mark.parametrize("pairs", ["SEEDS", "FOLDS", "SEEDS_AND_FOLDS"])
def test_what_is_paired(finished, tmp_path, pairs, missing):
    """Where trainings are missing: what both sides have."""
    directory, printed = tables_by(finished, tmp_path, f"pairs: {pairs}\n", lambda cells: [shutil.rmtree(cells / one) for one in missing])
    values, table, tested = values_by_unit(directory, pairs), compared(directory), {}
    for variant in ("no_dropout", "slow"):
        base, other = paired(values, variant, pairs)
        differences, p, _ = compared_by_scipy(base, [other])
        assert int(table[variant]["pairs"]) == len(base) and float(table[variant]["difference"]) == pytest.approx(differences[0].mean(), abs=1e-12)
        if len(base) > 1:
            assert float(table[variant]["p"]) == pytest.approx(p[0], abs=1e-12)
            tested[variant] = p[0]
        else:
            assert not any(table[variant][name] for name in ("low", "high", "p", "p_holm"))
    for place, p in holm(list(tested.values())).items():
        assert float(table[list(tested)[place]]["p_holm"]) == pytest.approx(p, abs=1e-12)
    assert len(tested) == (1 if missing and pairs == "SEEDS" else 2) and f"corrected for {len(tested)} comparison" in printed
    assert ("not independent" in printed) == (pairs == "SEEDS_AND_FOLDS")
    assert ("(n=2)" in printed) == ("!!! NOT COMPLETE: 16 of 18" in printed) == bool(missing)


def test_another_level_of_significance(finished, tmp_path):
    directory, printed = tables_by(finished, tmp_path, "pairs: SEEDS_AND_FOLDS significance_level: 0.4\n")
    values, table, header = values_by_unit(directory, "SEEDS_AND_FOLDS"), compared(directory), "[60 % interval]"
    assert header in printed and "* below 0.4." in printed
    for variant, label in (("no_dropout", "without dropout & co"), ("slow", "slow")):
        base, other = paired(values, variant, "SEEDS_AND_FOLDS")
        interval = stats.bootstrap((np.round(other - base, 12),), np.mean, confidence_level=0.6, n_resamples=9999, method="percentile", rng=0).confidence_interval
        assert (float(table[variant]["low"]), float(table[variant]["high"])) == pytest.approx(tuple(interval), abs=1e-12)
        row = next(line for line in (directory / "table.md").read_text().splitlines() if line.startswith(f"| {label}"))
        assert row.removesuffix(" |").endswith(" *") == (float(table[variant]["p_holm"]) < 0.4)


def test_tables_for_people(finished):
    directory, printed, progress = finished
    for name in ("table.txt", "table.md", "table.tex"):
        text = (directory / name).read_text()
        for row in rows(directory / "table.csv"):
            if row["fold"] == "pooled":
                assert f"{float(row['mean']):.4f}" in text and f"{float(row['std']):.4f}" in text
    assert (directory / "table.txt").read_text() in printed
    assert "cannot come below 0.5000" in printed  # 3 pairs, two comparisons: 2 * 2 / 2^3
    latex = (directory / "table.tex").read_text()
    assert "whole\\_model" in latex and "without dropout \\& co" in latex and latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2
    markdown = [line for line in (directory / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in markdown[:5]}) == 1
    assert "18/18" in progress
    best = max(("base", "no_dropout", "slow"), key=lambda variant: np.mean([float(row["value"]) for row in rows(directory / "cells.csv") if
                                                                         (row["variant"], row["split"], row["metric"]) == (variant, "validation", "UA")]))
    label = {"base": "whole_model", "no_dropout": "without dropout & co", "slow": "slow"}[best]
    assert f"{label} (best)" in printed and f"best: {label}, by UA on the validation split" in printed
    own, trivial = (float(row["mean"]) for row in rows(directory / "table.csv") if row["variant"] in (best, TRIVIAL) and (row["metric"], row["fold"]) == ("UA", "pooled"))
    warnings = {line.partition(":")[0] for line in printed.splitlines() if line.startswith("!!!")}
    assert warnings == (set() if own > trivial else {"!!! NOT BETTER THAN TRIVIAL"})
    # Of each training a few small files stay.
    names = {str(path.relative_to(directory / "cells/slow/seed-3-fold-1")) for path in (directory / "cells/slow/seed-3-fold-1").rglob("*")}
    assert names == {"config.txtpb", "environment.json", "metrics.jsonl", "predictions-test.csv", "predictions-valid.csv", "result.json"}


def columns_of(text):
    """The table in a terminal: of each line that is in columns, its cells."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if re.search(r"\S {2,}\S", line)]


def test_blocks_of_six_columns(finished):
    directory, *_ = finished
    text = (directory / "table.txt").read_text().split("small: UA of each fold")[0]
    lines, header = columns_of(text), ["UA", "WA", "samples", "ΔUA [95 % interval]", "p", "p (Holm)"]
    assert [line for line in lines if line[0] == "variant"] == [["variant", *header[:3]], ["variant", *header[3:]]]
    assert f"| variant | {' | '.join(header)} |" in (directory / "table.md").read_text()
    samples = {str(len(predictions(directory, "slow", seed, 0)) + len(predictions(directory, "slow", seed, 1))) for seed in (1, 2, 3)}
    assert len(samples) == 1 and all(line[3] in samples for line in lines if line[0].startswith(("whole_model", "slow", "without", "trivial")) and "±" in line[1])
    for row in rows(directory / "table.csv"):
        assert row["dropped"] == "0"
        if row["fold"] == "pooled":
            assert row["samples"] in samples
        elif row["fold"] != "mean of folds" and row["variant"] != TRIVIAL:
            assert float(row["samples"]) == len(predictions(directory, row["variant"], 1, row["fold"]))


def test_one_experiment_that_learns_nothing(tmp_path):
    """No variant, so nothing is compared, by SciPy or at all. Nothing can be learnt, and the table says so."""
    base = (mp.SMALL_LATE_FUSION + 'data { synthetic { kind: REGRESSION samples: 90 without_signal: ["text", "audio", "vision"] } }\n'
            "training { epochs: 20 batch_size: 16 }\nevaluation { every_epochs: 20 }\noptimizer { learning_rate: 1e-2 }\n")  # learns its samples by heart
    directory = tmp_path / "study"
    result = mp.muster("study", write_study(tmp_path, 'base: "base.txtpb"\nseeds: 2\n', base), "--study-dir", directory, changes={"MUSTER_PYTHON": "/bin/false"})
    assert "the base alone, 2 seeds" in result.stderr
    csv = {(row["variant"], row["metric"]): row for row in rows(directory / "table.csv")}
    values = {metric: [float(csv[variant, metric]["mean"] or "nan") for variant in ("base", TRIVIAL)] for variant, metric in csv}
    better = [metric for metric, (own, trivial) in values.items() if (own < trivial if metric == "MAE" else own > trivial)]
    own, trivial = values["MAE"]
    said = f"NOT BETTER THAN TRIVIAL: MAE of base on the test split is {own:.4f}, that of the training median {trivial:.4f}."
    said += f" Better by: {', '.join(better)}." if better else " Nothing was learnt that generalises."
    assert own >= trivial
    labels = [[float(row["label"]) for row in predictions(directory, "base", seed)] for seed in (1, 2)]
    medians = [float(mp.result(directory / f"cells/base/seed-{seed}")["trivial_baselines"]["prediction"]) for seed in (1, 2)]
    assert trivial == pytest.approx(np.mean([np.mean(np.abs(np.array(one) - median)) for one, median in zip(labels, medians)]), abs=1e-12)
    for name in ("table.txt", "table.md", "table.tex", "table.csv"):
        text = (directory / name).read_text()
        assert said in text.replace("\\_", "_"), text
        assert not re.search(r"\(best\)|best:|Δ|Delta|Holm\)|Wilcoxon|compared", text), text
    assert "small: test split, 2 seeds, mean ± std over seeds\n" in result.stdout and "Weights of every run" in result.stdout
    header = [line[1:] for line in columns_of(result.stdout) if line[0] == "variant"]
    assert [len(line) for line in header] == [5, 5] and sum(header, []) == [*values, "samples"]
    assert csv["base", "Corr"]["mean"] and not csv[TRIVIAL, "Corr"]["mean"]  # of a constant it is not defined


def test_other_samples_and_results_of_earlier_versions(tmp_path):
    """Samples without a modality are dropped, where the model needs it: two of four test samples, one of training."""
    mp.tiny_data(tmp_path / "data.h5", lengths={"audio": [3] * 24, "vision": [0 if i in (0, 5, 11) else 2 for i in range(24)]})
    base = mp.SMALL_LATE_FUSION + 'data { path: "data.h5" missing_modality: DROP }\ntraining { epochs: 1 batch_size: 8 }\n'
    text = 'base: "base.txtpb"\nvariants { name: "vision" set: "data.modalities=vision" }\nseeds: 1\nmetrics: "UA"\n'
    spec, directory = write_study(tmp_path, text, base), tmp_path / "study"
    printed = run(spec, directory).stdout
    assert "!!! DIFFERENT SAMPLES: the test samples of base are 4, of vision 2 (3 dropped). These numbers are not of the same samples, and the trivial baseline is that of base.\n" in printed
    assert "small: test split, 1 seed\n" in printed
    table = compared(directory, "UA")
    assert [(row["samples"], row["dropped"]) for row in table.values()] == [("4", "0"), ("2", "3")]
    assert [line[2] for line in columns_of(printed)] == ["samples", "4", "2 (3 dropped)", "4"]
    for path in directory.glob("cells/*/*/result.json"):
        result = json.loads(path.read_text())
        for name in ("trivial_baselines", "dropped_samples"):
            del result[name]
        path.write_text(json.dumps(result))
    printed = run(spec, directory, "--only-tables").stdout
    assert "trivial" not in printed and [line[2] for line in columns_of(printed)] == ["samples", "4", "2"]
    assert "not of the same samples.\n" in printed and {row["dropped"] for row in compared(directory, "UA").values()} == {""}


def test_a_baseline_without_its_prediction(finished, tmp_path):
    """As an earlier version left it: known for each fold, not for all together."""
    def forget(cells):
        for path in cells.glob("base/*/result.json"):
            result = json.loads(path.read_text())
            del result["trivial_baselines"]["prediction"]
            path.write_text(json.dumps(result))

    directory, printed = tables_by(finished, tmp_path, "", forget)
    assert "NOT BETTER" not in printed
    table = {row["fold"]: row["mean"] for row in rows(directory / "table.csv") if (row["variant"], row["metric"]) == (TRIVIAL, "UA")}
    assert not table["pooled"] and all(table[fold] for fold in ("0", "1", "mean of folds"))
    assert [line[1] for line in columns_of(printed) if line[0].startswith("trivial")][0] == "–"


def test_a_base_that_muster_wrote(tmp_path):
    """It is read as of the version that wrote it."""
    spec = write_study(tmp_path)
    (tmp_path / "base.txtpb").write_text("# muster-results-version: none\n" + (tmp_path / "base.txtpb").read_text())
    assert "muster-results-version: needs a number from 1" in run(spec, tmp_path / "study", code=78).stderr


def family_of(seed):
    """Comparisons, some with few pairs, with none, without any difference."""
    random = np.random.default_rng(seed)
    shifts = (15, 0.6), (15, 0.6), (1, 1), (15, 0.7), (15, 0.7), (0, 0), (15, 0.8), (15, 0.8)
    return [*({"base": list(random.normal(0, 1, n)), "variant": list(random.normal(shift, 1, n))} for n, shift in shifts), {"base": [1.0] * 5, "variant": [1.0] * 5}]


def test_correction_for_many_comparisons():
    """Each family by itself."""
    families = [family_of(seed) for seed in (0, 2)]
    answer = subprocess.run([sys.executable, mp.ROOT / "launcher/study/significance.py"], input=json.dumps({"level": 0.05, "families": families}), text=True, capture_output=True, check=True)
    for family, found in zip(families, json.loads(answer.stdout), strict=True):
        tested = [i for i, one in enumerate(family) if len(one["base"]) > 1]
        p = [stats.wilcoxon(np.subtract(family[i]["variant"], family[i]["base"])).pvalue if i < 8 else 1.0 for i in tested]
        factors = np.sort(p) * np.arange(7, 0, -1)
        assert len(set(p)) == 7 and any(0.9 > before > after for before, after in zip(factors, factors[1:])), "the order must matter"
        for place, corrected in holm(p).items():
            assert found[tested[place]]["p"] == pytest.approx(p[place], abs=1e-12) and found[tested[place]]["p_holm"] == pytest.approx(corrected, abs=1e-12)
        assert all(found[i]["p"] is None and found[i]["p_holm"] is None for i in (2, 5)) and found[5]["difference"] is None


@pytest.mark.parametrize("gone", ["base", "slow"])
def test_the_best_of_what_is_there(finished, tmp_path, gone):
    """Nothing of one variant, and of the others only their whole seeds."""
    directory, printed = tables_by(finished, tmp_path, "", lambda cells: [shutil.rmtree(path) for path in
                                                                         {*cells.glob(f"{gone}/*"), *cells.glob("*/seed-2-fold-1"), cells / "no_dropout/seed-1-fold-0"}])
    value = {}
    for row in rows(directory / "cells.csv"):
        if (row["split"], row["metric"]) == ("validation", "UA"):
            value.setdefault(row["variant"], {}).setdefault(row["seed"], []).append(float(row["value"]))
    by_seed = {variant: [np.mean(folds) for folds in seeds.values() if len(folds) == 2] for variant, seeds in value.items()}
    assert sorted(len(seeds) for seeds in by_seed.values()) == [1, 2]
    best = max(by_seed, key=lambda variant: np.mean(by_seed[variant]))
    spread = f" ± {np.std(by_seed[best], ddof=1):.4f}" if len(by_seed[best]) > 1 else ""
    label = {"base": "whole_model", "no_dropout": "without dropout & co", "slow": "slow"}[best]
    assert f"best: {label}, by UA on the validation split, {np.mean(by_seed[best]):.4f}{spread}." in printed and (directory / "table.md").read_text().count("(best)") == 1
    for variant, row in compared(directory).items():
        if gone in ("base", variant):
            assert int(row["pairs"] or 0) == 0 and not row["p"] and not row["difference"]


def boast(cells):
    """Makes `slow` the best on the validation split, and there only."""
    for path in cells.glob("slow/*/result.json"):
        result = json.loads(path.read_text())
        result["valid"]["metrics"]["UA"] = 0.99
        path.write_text(json.dumps(result))


def test_choosing_on_the_test_split_is_marked_loudly(finished, tmp_path):
    for name, more in (("valid", ""), ("test", "select_on: TEST\n")):
        (tmp_path / name).mkdir()
        directory, printed = tables_by(finished, tmp_path / name, more, boast)
        table = compared(directory)
        by_test = max(table, key=lambda variant: float(table[variant]["mean"]))
        assert by_test != "slow", "the two choices must differ"
        best = "slow" if name == "valid" else by_test
        assert f"{table[best]['label']} (best)" in printed and (directory / "table.md").read_text().count("(best)") == 1
        assert ("!!! SELECTED ON THE TEST SPLIT" in printed) == ("on the TEST split" in printed) == (name == "test")
        for file in ("table.txt", "table.md", "table.tex", "table.csv"):
            assert ("SELECTED ON THE TEST SPLIT" in (directory / file).read_text()) == (name == "test"), file


def repeat_samples(cells):
    shutil.copy(cells / "slow/seed-1-fold-0/predictions-test.csv", cells / "slow/seed-1-fold-1/predictions-test.csv")


def tear_predictions(cells):
    path = cells / "slow/seed-1-fold-1/predictions-test.csv"
    path.write_text(path.read_text().rsplit(",", 1)[0] + "\n")


def tear(name):
    def change(cells):
        path = cells / "slow/seed-1-fold-1" / name
        path.write_text(path.read_text()[:100])

    return change


@pytest.mark.parametrize("damage, said", [(repeat_samples, "predictions-test.csv: sample"), (tear_predictions, "predictions-test.csv: line"), (tear("result.json"), "result.json: "),
                                          (tear("environment.json"), "environment.json: ")])
def test_damaged_files_of_a_training_are_named(finished, tmp_path, damage, said):
    directory, text = tables_by(finished, tmp_path, "", damage, code=65)
    assert text.count("muster: ") == 1 and f"slow/seed-1-fold-1/{said}" in text.replace("\n", " ") and "emove that run's folder" in text, text


def test_a_stop_while_variants_are_compared(finished, tmp_path):
    """Slurm signals all processes of a task: SciPy's is let end."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nkill -USR1 $$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    mp.muster("study", finished[0].parent / "small.txtpb", "--study-dir", finished[0], "--only-tables", changes={"MUSTER_PYTHON": str(python)})


def test_folds_of_numbers(tmp_path):
    """Regression; few seeds, so folds are paired; the weights are kept."""
    base = mp.SMALL_LATE_FUSION + "data { synthetic { kind: REGRESSION samples: 90 } split { kind: K_FOLD folds: 3 } }\ntraining { epochs: 1 batch_size: 16 }\n"
    text = 'base: "base.txtpb"\nvariants { name: "slow" set: "optimizer.learning_rate=1e-6" }\nseeds: 1\nfolds: 3\nmetrics: "MAE"\nmetrics: "Corr"\nkeep_weights: true\n'
    printed = run(write_study(tmp_path, text, base), tmp_path / "study", ranks=2).stdout
    assert "paired by fold (mean over seeds)" in printed
    cells = [tmp_path / f"study/cells/base/seed-1-fold-{fold}" for fold in range(3)]
    labels, held_out = [], []  # the test samples of all folds are all samples
    for cell in cells:
        labels.append({row["id"]: float(row["label"]) for row in rows(cell / "predictions-test.csv")})
        held_out.append({row["id"] for row in rows(cell / "predictions-valid.csv")} | set(labels[-1]))
    everything = {id: label for fold in labels for id, label in fold.items()}
    medians = [np.median([label for id, label in everything.items() if id not in out]) for out in held_out]
    errors = [np.abs(np.array(list(fold.values())) - median) for fold, median in zip(labels, medians)]
    trivial = {row["fold"]: float(row["mean"]) for row in rows(tmp_path / "study/table.csv") if (row["variant"], row["metric"]) == (TRIVIAL, "MAE")}
    assert trivial == pytest.approx({"pooled": np.mean(np.concatenate(errors)), "mean of folds": np.mean([np.mean(fold) for fold in errors]),
                                     **{str(fold): np.mean(errors[fold]) for fold in range(3)}}, abs=1e-12)
    for metric, value_of in (("MAE", lambda given, true: np.mean(np.abs(given - true))), ("Corr", lambda given, true: np.corrcoef(given, true)[0, 1])):
        by_fold = {}
        for variant, row in compared(tmp_path / "study", metric).items():
            folds = [np.array([[float(row["prediction"]), float(row["label"])] for row in predictions(tmp_path / "study", variant, 1, fold)]).T for fold in range(3)]
            by_fold[variant] = [value_of(*fold) for fold in folds]
            assert float(row["mean"]) == pytest.approx(value_of(*np.concatenate(folds, axis=1)), abs=1e-6) and int(row["n"]) == 1
        differences, p, _ = compared_by_scipy(by_fold["base"], [by_fold["slow"]])
        row = compared(tmp_path / "study", metric)["slow"]
        assert int(row["pairs"]) == 3 and float(row["difference"]) == pytest.approx(differences[0].mean(), abs=1e-6) and float(row["p"]) == pytest.approx(p[0], abs=1e-12)
    assert {path.name for path in (tmp_path / "study").glob("cells/*/*/weights/*")} == {"best.safetensors"}


def test_own_multi_label_data_in_place_of_built_in(tmp_path):
    """`set` takes the built-in data away and gives a file: only together do they make sense. Pooled scores are those of all rows."""
    data = mp.tiny_data(tmp_path / "own.h5", "multilabel", 60)
    base = mp.SMALL_LATE_FUSION + "data { synthetic { kind: CLASSIFICATION samples: 150 } }\ntraining { epochs: 1 batch_size: 16 }\n"
    text = (f'base: "base.txtpb"\nset: "data.synthetic="\nset: "data.path={data}"\nvariants {{ name: "audio" set: "data.modalities=audio" }}\n'
            'seeds: 2\nmetrics: "micro_F1"\nmetrics: "mean_weighted_F1"\n')
    directory = tmp_path / "study"
    printed = run(write_study(tmp_path, text, base), directory).stdout
    assert "trivial: majority of each class" in printed
    table = compared(directory, "micro_F1")
    for variant in ("base", "audio"):
        found = []
        for seed in (1, 2):
            samples = predictions(directory, variant, seed)
            labels, predicted = ([[int(row[f"{kind}_{name}"]) for name in ("calm", "glad", "sad")] for row in samples] for kind in ("label", "prediction"))
            found.append(f1_score(labels, predicted, average="micro", zero_division=0))
        assert float(table[variant]["mean"]) == pytest.approx(np.mean(found), abs=1e-9)
    missing = run(write_study(tmp_path, text.replace("own.h5", "other.h5"), base), tmp_path / "missing", code=78).stderr
    assert "there is no file" in missing and missing.count("other.h5") >= 1
