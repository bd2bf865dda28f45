#!/usr/bin/env bash
# From a fresh clone to a trained model: sets up, then trains the small built-in experiment on two ranks. Arguments go to
# setup.sh (for example --device cpu).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

./setup.sh "$@"

run_dir=runs/quickstart number=1
while [[ -e $run_dir ]]; do
  number=$((number + 1))
  run_dir=runs/quickstart-$number
done
options=(-n 2)
if ((EUID == 0)); then
  options+=(--allow-run-as-root)
  echo
  echo "You are root, and Open MPI refuses to start as root unless told otherwise: adding --allow-run-as-root for this run"
  echo "only. For your own work prefer an ordinary user, whose mistakes cannot harm the system."
fi
if (($(nproc) < 2)); then
  options+=(--oversubscribe)
  echo
  echo "Fewer than two cores here: adding --oversubscribe, so that both ranks share one."
fi

command=(muster launch "${options[@]}" train experiments/quickstart.txtpb --run-dir "$run_dir")
printf '\nTraining on two ranks, data made on the fly. The command (after ". ./env.sh"):\n    %s\n\n' "${command[*]}"
started=$SECONDS
PATH=$PWD/build:$PATH "${command[@]}"

printf '\nTrained in %d s. In %s:\n' $((SECONDS - started)) "$run_dir"
describe() { if [[ -e $run_dir/$1 ]]; then printf '    %-24s%s\n' "$1" "$2"; fi; }
describe result.json "the scores"
describe predictions-test.csv "one line per test sample"
describe metrics.jsonl "the course of training"
describe config.txtpb "every setting, defaults included"
describe environment.json "versions, hosts, ranks"
describe weights "the best and the last, as safetensors"

cat <<EOF

Next:
    . ./env.sh                                        # puts muster on PATH
    muster evaluate $run_dir
    muster config experiments/quickstart.txtpb        # every setting, explained
    muster train experiments/quickstart.txtpb --run-dir runs/one-rank
    muster evaluate runs/one-rank                     # one rank instead of two: the same model
EOF
