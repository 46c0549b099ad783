#!/usr/bin/env bash
# Does the network that a search finds predict as well as others at a lower cost? Searches, without a price of time and with several;
# trains what each has found alone and, with the same flags, attention in every block, attention and dense in turn (Transformer-XL),
# dense in every block, and random picks; each with every seed. Then scores all, prints them and draws quality over cost.
# It takes two cores some hours. It may be stopped: the same command goes on. Flags given here go to every training, so they are about
# training or size: recipes/compare.sh --epochs=3. Less of it: SEEDS=0 PICKS=3 PRICES=0.005 recipes/compare.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt"
seeds=${SEEDS:-0 1} picks=${PICKS:-10} prices=${PRICES:-0.002 0.005 0.01 0.02 0.05} # nats per millisecond

logs=logs layers=6
for flag in "$@"; do
  case $flag in
    --logs_dir=*) logs=${flag#*=} ;;
    --num_layers=*) layers=${flag#*=} ;;
  esac
done
given=("$@") networks= first=${seeds%% *}

train() { # name, flags
  [ -e "$logs/compare_$1/results.json" ] ||
    "$project/recipes/fast.sh" --model_name="compare_$1" --seed="$seed" --epochs=2 "${@:2}" "${given[@]}"
}

train_network() { # name, architecture, flags
  train "$1" --architecture="$2" "${@:3}"
  networks+=${networks:+,}$logs/compare_$1
}

blocks() { # letters, over and over
  local all=
  while [ "${#all}" -lt "$layers" ]; do all+=$1; done
  echo "${all:0:layers}"
}

for seed in $seeds; do
  train "search_$seed"
  train_network "found_$seed" "$logs/compare_search_$seed"
  train_network "attention_$seed" "$(blocks a)"
  train_network "interleaved_$seed" "$(blocks ad)"
  train_network "dense_$seed" "$(blocks d)"
  for ((pick = 1; pick <= picks; pick++)); do
    if [ "$seed" = "$first" ]; then
      train_network "random_${pick}_$seed" random --seed="$((100 + pick))" # it draws the architecture too
    else
      train_network "random_${pick}_$seed" "$logs/compare_random_${pick}_$first"
    fi
  done
  for price in $prices; do
    train "search_${price}_$seed" --latency_weight="$price"
    train_network "found_${price}_$seed" "$logs/compare_search_${price}_$seed"
  done
done
"$PYTHON" "$project/evaluate.py" --run="$networks" >/dev/null
exec "$PYTHON" "$project/plot_search.py" --compare="$networks"
