# Makes data and trains on a disk that is full, and on one that may only be read: test_disk.py.
#   unshare -rm bash -e small_disk.sh FOLDER
# FOLDER holds `corpus`, and gets what is kept. PYTHON, WARM, PROJECT, DATA_FLAGS and TRAIN_FLAGS are set. The disk
# is a mount in a name space of its own, which is gone when this ends.
folder=$1

coproc server { "$PYTHON" "$WARM" --serve; } # in this name space: the other one's processes do not see the disk
read -r WARM_SERVER <&"${server[0]}"
export WARM_SERVER

make() { "$PYTHON" -IS "$WARM" "$PROJECT/data_utils.py" $DATA_FLAGS --output_dir=data "$@"; }
train() { "$PYTHON" -IS "$WARM" "$PROJECT/train.py" $TRAIN_FLAGS "$@"; }

fill() { # leave so many kB
  dd if=/dev/zero of=filler bs=1k count=$(($(df --output=avail -k . | tail -n 1) - $1))
}

fails() { # command
  if "$@" 2>"$folder/errors"; then return 1; else echo "failed with $?: $(cat "$folder/errors")"; fi
}

mount -t tmpfs -o size=6m tmpfs /mnt
cd /mnt
cp -r "$folder/corpus" .
make
train --max_steps=60

fill 250
fails train
cp -r logs/run "$folder/kept"
rm filler
fill 100
fails make --batch_size=8
rm filler

mount -o remount,ro /mnt
fails train
fails make --batch_size=8
mount -o remount,rw /mnt

train
cp -r logs/run "$folder/resumed"
cp -r data "$folder"
cd /
