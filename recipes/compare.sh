#!/usr/bin/env bash
# Does the network that a search finds predict as well as others at a lower cost? Searches as recipes/fast.sh does, without a price of
# time and with several; trains what they found alone and, with the same flags, attention in every block, attention and dense in turn
# (Transformer-XL), dense in every block, and random picks; each with every seed (the picks first with one of their own). Then scores
# all, prints them and draws quality over cost.
# It takes two cores some hours. It may be stopped: the same command goes on. Flags given here go to every training, so they are about
# training or size: recipes/compare.sh --epochs=3. Less of it: SEEDS=0 PICKS=3 PRICES=0.005 recipes/compare.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
use_python "$project/requirements.txt"
seeds=${SEEDS-0 1} picks=${PICKS-10} prices=${PRICES-0.002 0.005 0.01 0.02 0.05} # nats per millisecond

logs=logs layers=6
for flag in "$@"; do
  case $flag in
    --logs_dir=*) logs=${flag#*=} ;;
    --num_layers=*) layers=${flag#*=} ;;
    --logs_dir | --num_layers | -[!-]*) fail "$flag: write --name=value here" ;;
  esac
done
logs=${logs/#\~/$HOME} networks= first_seed=${seeds%% *}

mkdir -p "$logs"
if [ -e "$logs/compare_flags" ] && [ "$*" != "$(cat "$logs/compare_flags")" ]; then
  fail "$logs has a comparison with other flags ($(cat "$logs/compare_flags")): choose another --logs_dir"
fi
echo "$*" >"$logs/compare_flags"

train() { # name, flags
  [ -e "$logs/compare_$1/results.json" ] ||
    "$project/train.sh" --model_name="compare_$1" --epochs=2 --max_lr=2e-3 --warmup_steps=300 --clipnorm=1 --dropout_rate=0 \
      --mixed_precision "${@:2}"
}

score() { # name: once
  case ,$networks, in *,"$logs/compare_$1",*) return ;; esac
  networks+=${networks:+,}$logs/compare_$1
}

found() { # name of a search, or of a random pick: its letters
  sed -n 's/^  "architecture": "\([a-z]*\)".*/\1/p' "$logs/compare_$1/results.json"
}

train_letters() { # letters, seed, flags: once, whoever found them
  train "$1_$2" --architecture="$1" --seed="$2" "${@:3}"
  score "$1_$2"
}

blocks() { # letters, over and over
  local all=
  while [ "${#all}" -lt "$layers" ]; do all+=$1; done
  echo "${all:0:layers}"
}

for seed in $seeds; do
  for price in 0 $prices; do
    search=search_${price}_$seed
    train "$search" --gumbel_per_row --arch_lr_factor=5 --tau_start=5 --tau_end=1 --latency_weight="$price" --seed="$seed" "$@"
    echo "$search found $(found "$search")"
    train_letters "$(found "$search")" "$seed" "$@"
  done
  for letters in a ad d; do train_letters "$(blocks $letters)" "$seed" "$@"; done
  for ((pick = 1; pick <= picks; pick++)); do
    random=random_${pick}_$seed
    if [ "$seed" = "$first_seed" ]; then
      train "$random" --architecture=random --seed="$((100 + pick))" "$@" # it draws the architecture too
    else
      train "$random" --architecture="$(found "random_${pick}_$first_seed")" --seed="$seed" "$@"
    fi
    score "$random"
  done
done
"$PYTHON" "$project/evaluate.py" --run="$networks" >/dev/null
exec "$PYTHON" "$project/plot_search.py" --compare="$networks"
