#!/usr/bin/env bash
# Compares the networks found by searches with others of the same width. Runs searches of one epoch with the first seed, without
# --latency_weight and with several values of it. Then trains with every seed for two epochs: the found networks, attention in every
# block, attention and dense in turn (Transformer-XL), dense in every block, and ten random picks. Scores these, prints a table and plots
# quality over cost. Takes hours on two cores. To resume, repeat the command. All trainings are those of recipes/fast.sh; flags apply to
# every one of them: recipes/compare.sh --d_ffn=512. The picks are for six blocks of attention, dense and identity; with another
# --num_layers, they are repeated or cut, unless you set PICKS. SEEDS are the seeds, PRICES the values of --latency_weight (nats per
# millisecond).
# A smaller comparison: SEEDS=0 PICKS="iddaaa aaaidi" PRICES=0.005 recipes/compare.sh
[ -n "$BASH_VERSION" ] || exec bash "$0" "$@"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../support/environment.sh"
explain "$@"
use_python "$project/requirements.txt"
seeds=${SEEDS-0 1} prices=${PRICES-0.002 0.005 0.01 0.02 0.05} # nats per millisecond
picks=${PICKS-iddaaa aaaidi ddiidd diaiia didaii iaaiad aaddda aaaidd adiddi iidiid} # drawn by numpy.random.default_rng(0)

logs=logs layers=6
for flag in "$@"; do
  case $flag in
    --logs_dir=*) logs=${flag#*=} ;;
    --seed* | --latency_weight* | --architecture* | --init_from* | --model_name*) fail "$flag: this script sets ${flag%%=*} itself" ;;
    --search=uniform) fail "$flag: such a search chooses no network (recipes/find.sh uses one)" ;;
    --num_layers=*) layers=${flag#*=} ;;
    --logs_dir | --num_layers | -[!-]*) fail "$flag: write --name=value here" ;;
  esac
done
home=~ first_seed=${seeds%% *} trained= searches= # bash knows ~ even without HOME
case $logs in
  "~" | "~/"*) logs=$home${logs#\~} ;;
  "~"*) fail "--logs_dir=$logs: write the path without ~" ;;
esac
[ -n "$first_seed" ] || fail "SEEDS is empty"
case $picks in *[!a-z\ ]*) fail "PICKS takes letters of blocks, such as PICKS=\"iddaaa aaaidi\"" ;; esac

mkdir -p "$logs"
if [ -d "$logs/compare_search_0_$first_seed" ] && [ "$*" != "$(cat "$logs/compare_flags")" ]; then
  fail "$logs holds a comparison with other flags ($(cat "$logs/compare_flags")): choose another --logs_dir"
fi
echo "$*" >"$logs/compare_flags"

train() { # name, flags; does nothing if trained already
  [ -e "$logs/compare_$1/results.json" ] || bash "$project/recipes/fast.sh" --model_name="compare_$1" "${@:2}"
}

train_alone() { # name, letters, seed, flags; notes the run for the comparison
  case ,$trained, in *,"$logs/compare_$1",*) return ;; esac
  train "$1" --epochs=2 --architecture="$2" --seed="$3" "${@:4}"
  trained+=${trained:+,}$logs/compare_$1
}

found() { # name of a search; prints its letters
  sed -n 's/^  "architecture": "\([a-z]*\)".*/\1/p' "$logs/compare_$1/results.json"
}

blocks() { # letters; repeats them until each block has one
  local all=
  while [ "${#all}" -lt "$layers" ]; do all+=$1; done
  echo "${all:0:layers}"
}

networks="$(blocks a) $(blocks ad) $(blocks d)"
for price in 0 $prices; do
  name=search_${price}_$first_seed
  train "$name" --latency_weight="$price" --seed="$first_seed" "$@"
  echo "$name found $(found "$name")"
  searches+=${searches:+,}$logs/compare_$name
  networks+=" $(found "$name")"
done
for seed in $seeds; do
  for letters in $networks; do train_alone "${letters}_$seed" "$letters" "$seed" "$@"; done
  for pick in $picks; do
    letters=$(blocks "$pick")
    case " $networks " in *" $letters "*) continue ;; esac # trained already
    train_alone "random_${letters}_$seed" "$letters" "$seed" "$@"
  done
done
"$PYTHON" "$project/evaluate.py" --run="$trained" >/dev/null
exec "$PYTHON" "$project/plot_search.py" --compare="$trained" --searches="$searches"
