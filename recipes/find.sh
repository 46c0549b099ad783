#!/usr/bin/env bash
# Finds a network for a budget and trains it. Trains a search on randomly drawn layers for one epoch, scores subnetworks within the budget,
# and takes the best eight of them. Trains these from scratch for a quarter of the steps, the best four for half, and the best one for
# all (successive halving, Jamieson & Talwalkar 2016): the work of five trainings. To resume, repeat the command.
#   recipes/find.sh --budget_ms=5                                   # of the layers, for the forward pass of a window, on this machine
#   recipes/find.sh --budget_mflops=2 --model_name=small --epochs=4 # per token; 4 epochs for the best one
# All trainings are those of recipes/fast.sh. Flags of a search go to the search alone; --search_FLAG=VALUE sets any other flag of the
# search, such as --search_epochs=0.5. The remaining flags go to every training. The runs are logs/NAME_search, logs/NAME_aaddid_0.5 and
# so on.
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
use_python "$project/requirements.txt"
name=find epochs=2 search=--search=uniform of_search=(--epochs=1) training=(--logs_dir=logs) budget=()
for flag in "$@"; do
  case $flag in
    --model_name=*) name=${flag#*=} ;;
    --epochs=*)
      epochs=${flag#*=}
      [[ $epochs =~ ^[0-9]*\.?[0-9]+$ ]] || fail "$flag: give a number, such as --epochs=0.5"
      ;;
    --budget_*=* | --num_networks=* | --num_windows=*) budget+=("$flag") ;;
    --search=*) search=$flag ;;
    --search_*=*) of_search+=("--${flag#--search_}") ;;
    --kinds=* | --num_layers=* | --*gumbel_per_row* | --arch_* | --*tau_* | --latency_weight=* | --*straight_through*) of_search+=("$flag") ;;
    --architecture* | --init_from* | --logs_dir*) fail "$flag: this script sets ${flag%%=*} itself" ;;
    --*=* | --no*) training+=("$flag") ;;
    *) fail "$flag: write --name=value here" ;;
  esac
done
[[ "$*" == *--budget_* ]] || fail "set --budget_ms or --budget_mflops"
run=logs/$name
mkdir -p logs
if [ -d "${run}_search" ] && [ "$*" != "$(cat "${run}_flags")" ]; then
  fail "$name was begun with other flags ($(cat "${run}_flags")): choose another --model_name"
fi
echo "$*" >"${run}_flags"

train() { # name, flags; does nothing if trained already
  [ -e "logs/$1/results.json" ] || bash "$project/recipes/fast.sh" --model_name="$1" "${training[@]}" "${@:2}"
}

best() { # number, runs; prints the letters of those of lowest validation loss
  "$PYTHON" -c '
import json, sys
runs = [json.load(open(f"{folder}/results.json")) for folder in sys.argv[2:]]
runs.sort(key=lambda run: run["valid"]["loss"])
print(*(run["architecture"] for run in runs[:int(sys.argv[1])]))' "$@"
}

train "${name}_search" "$search" "${of_search[@]}"
if [ ! -e "${run}_shortlist" ]; then
  "$PYTHON" "$project/choose.py" --run="${run}_search" "${budget[@]}"
  "$PYTHON" -c 'import json, sys; print(*json.load(open(sys.argv[1]))["shortlist"])' \
    "$(ls -t "${run}"_search/choices_step*.json | head -1)" >"${run}_shortlist.part"
  mv "${run}_shortlist.part" "${run}_shortlist"
fi
left=$(cat "${run}_shortlist")
for stage in "0.25 4" "0.5 1" "1 1"; do # share of the steps, and how many networks go on
  read -r share number <<<"$stage"
  runs=()
  for letters in $left; do
    train "${name}_${letters}_$share" --architecture="$letters" --epochs="$(awk "BEGIN { print $epochs * $share }")"
    runs+=("${run}_${letters}_$share")
  done
  left=$(best "$number" "${runs[@]}")
done
"$PYTHON" "$project/evaluate.py" --run="${runs[0]}"
loss=$("$PYTHON" -c 'import json, sys; print("%.4f" % json.load(open(sys.argv[1]))["valid"]["loss"])' "${runs[0]}/results.json")
echo "found $left: validation loss $loss; to evaluate it again: python evaluate.py --run=${runs[0]}"
