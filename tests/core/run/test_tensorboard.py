"""The TensorBoard file of a run, read by TensorBoard itself."""
import json
import os
import resource
import subprocess

import numpy as np
from probe_program import probe, program
from tensorboard.backend.event_processing import event_accumulator


def train_row(step):
    return {"kind": "train", "step": step, "epoch": 1 + step // 10, "loss": 1 / (step + 1), "terms": {"ce": 0.0, "avel": -step}, "learning_rate": 1e-4,
            "gradient_norm": 3.5, "samples_per_second": 99.5, "microbatches": [1, 1], "bytes_sent": 4096, "wall_time": 1.7e9 + step}


def valid_row(step):
    return {"kind": "valid", "step": step, "epoch": 1 + step // 10, "loss": 0.25 * step, "terms": {"ce": 2.5}, "metrics": {"WA": 50.5, "UA": None},
            "samples": 31, "best": True, "confusion": [[1, 2], [3, 4]], "wall_time": 1.7e9 + step + 0.5}


def skipped_row(step):
    return {"kind": "skipped", "step": step, "epoch": 1, "found": "loss is NaN", "wall_time": 1.7e9 + step}


def rows_of(steps):
    rows = []
    for step in steps:
        rows.append(skipped_row(step) if step % 7 == 6 else train_row(step))
        if step % 5 == 0:
            rows.append(valid_row(step))
    return rows


def expected(rows):
    """tag -> [(step, wall time, value)], worked out apart from the program."""
    scalars = {}
    for row in rows:
        def put(tag, value):
            scalars.setdefault(tag, []).append((row["step"], row["wall_time"], float(np.float32(value))))

        kind = row["kind"]
        if kind == "skipped":
            put("train/skipped", 1)
            continue
        if kind == "train":  # a validation is at the step of a row of training: no tag has two values there
            put("epoch", row["epoch"])
        for name in ("loss", "learning_rate", "gradient_norm", "samples_per_second", "bytes_sent", "samples"):
            if name in row:
                put(f"{kind}/{name}", row[name])
        for group in ("terms", "metrics"):
            for name, value in row.get(group, {}).items():
                if value is not None:
                    put(f"{kind}/{group}/{name}", value)
    return scalars


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, rows, after=None):
    answer = probe("event", folder, *([] if after is None else [after]), input=lines(rows))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def read(folder):
    accumulator = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.SCALARS: 0})
    accumulator.Reload()
    return {tag: [(event.step, event.wall_time, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_every_value_arrives(tmp_path):
    rows = rows_of(range(1, 60))
    path = write(tmp_path, rows)
    assert os.listdir(tmp_path) == [os.path.basename(path)] and os.path.basename(path).startswith("events.out.tfevents.")
    found = read(tmp_path)
    assert found == expected(rows)
    assert {"train/loss", "train/terms/ce", "train/skipped", "valid/loss", "valid/metrics/WA"} <= found.keys()
    assert found["train/terms/ce"][0][2] == 0


def test_continuing_leaves_no_gap_and_nothing_twice(tmp_path):
    path = write(tmp_path, rows_of(range(1, 31)))
    for after in (20, 25, 25, 0, 40):  # 0: nothing of the former is wanted; 40: nothing is to be cut off
        assert write(tmp_path, rows_of(range(after + 1, 41)), after) == path
    assert read(tmp_path) == expected(rows_of(range(1, 41)))


def test_an_end_torn_anywhere_is_cut_off(tmp_path):
    path = write(tmp_path, rows_of(range(1, 4)))
    with open(path, "rb") as file:
        whole = file.read()
    with open(write(tmp_path, [], 2), "rb") as file:
        two = file.read()
    assert whole.startswith(two)
    for size in [*range(0, 60), *range(len(two) - 20, len(whole), 7)]:
        with open(path, "wb") as file:
            file.write(whole[:size])
        kept = sum(len(values) for values in read(tmp_path).values()) if size else 0
        write(tmp_path, rows_of([4]), 3)
        found = read(tmp_path)
        assert found["train/loss"][-1][0] == 4
        assert sum(len(values) for values in found.values()) == kept + sum(len(values) for values in expected(rows_of([4])).values())


def test_a_flipped_bit_is_never_read_as_a_value(tmp_path):
    path = write(tmp_path, rows_of(range(1, 6)))
    with open(path, "rb") as file:
        whole = file.read()
    good = expected(rows_of(range(1, 6)))
    for bit in range(0, 8 * len(whole), 101):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with open(path, "wb") as file:
            file.write(damaged)
        write(tmp_path, [], 5)
        for tag, values in read(tmp_path).items():
            assert values == good[tag][:len(values)], (bit, tag)


def test_a_full_disk_leaves_whole_records(tmp_path):
    rows = rows_of(range(1, 200))
    limit = 4000

    def limited():
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    answer = subprocess.run([program(), "event", tmp_path], input=lines(rows), capture_output=True, text=True, timeout=60, preexec_fn=limited)
    assert answer.returncode == 74 and "Cannot write the TensorBoard file" in answer.stderr
    (name,) = os.listdir(tmp_path)
    size = os.path.getsize(tmp_path / name)
    last = max(step for step, _, _ in read(tmp_path)["train/loss"])
    write(tmp_path, [], last)
    assert os.path.getsize(tmp_path / name) == size < limit
