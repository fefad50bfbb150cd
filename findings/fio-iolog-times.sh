#!/bin/bash
# fio: the times of an iolog are not what fio(1) says.
#
# Expected, from fio(1): in version 2, "wait" waits for so many microseconds after the wait before, and
# everything below 100 is discarded; version 3 has a time for each action, from the beginning of the run,
# and the original timing is kept when it is replayed (replay_no_stall is off). Trims are replayed.
# Seen (fio 3.33): "wait 2000" waits until 2000 milliseconds after fio's start, so a second "wait 2000" does
# nothing. What fio writes in version 3 are microseconds, which fio(1) does not say. A gap of two
# seconds in version 3 is not kept: the replay takes no time. A trim is a "bad ddir: 2", and left out.
#
# Uses the distribution's fio.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fio --version
truncate -s 1M f
took=()

replay() { # prints milliseconds
    local began=$(date +%s%N)
    fio --name=replay --ioengine=psync --read_iolog="$1" > "$1.said" 2>&1
    echo $((($(date +%s%N) - began) / 1000000))
}

printf 'fio version 2 iolog\nf add\nf open\nf read 0 4096\nf close\n' > plain
printf 'fio version 2 iolog\nf add\nf open\nf read 0 4096\nf wait 2000 0\nf read 4096 4096\nf wait 2000 0
f read 8192 4096\nf close\n' > waits
printf 'fio version 3 iolog\n0 f add\n0 f open\n0 f read 0 4096\n2000000 f read 4096 4096
2000000 f close\n' > times
printf 'fio version 2 iolog\nf add\nf open\nf read 0 4096\nf trim 0 4096\nf close\n' > trims
for one in plain waits times trims; do
    took[${#took[@]}]=$(replay $one)
    echo "$one: ${took[-1]} ms"
done

fio --name=write --filename=f --rw=read --bs=4k --size=16k --thinktime=100000 --write_iolog=log > /dev/null
tail -n2 log

[ "${took[1]}" -ge 2000 ] && [ "${took[1]}" -lt $((${took[0]} + 3500)) ] ||
    { echo "waits are different now"; exit 1; }
[ "${took[2]}" -lt $((${took[0]} + 1500)) ] || { echo "the gaps of version 3 are kept now"; exit 1; }
grep -q 'bad ddir: 2' trims.said || { echo "trims are replayed now"; exit 1; }
[ "$(tail -n1 log | cut -d' ' -f1)" -ge 300000 ] || { echo "version 3 has other units now"; exit 1; }
echo "as described: wait is in milliseconds from the start, gaps of version 3 and trims are left out"
