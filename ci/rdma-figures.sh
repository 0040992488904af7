#!/bin/sh
# Reads of 4 KiB over RDMA and over TCP beside perftest's own, in counts, inside a guest (ci/guest copies it there, beside the binary and perftest). /dev/nvme0n1 is an ext4 with room for it. Written
# for busybox.
# Everything is emulated there: no time, rate or bandwidth below means anything, and they are printed because the tools do.
set -eu
export PATH=/payload:$PATH NO_COLOR=1
dir=/scratch/disk/figures
mkdir /scratch/disk
mount -t ext4 /dev/nvme0n1 /scratch/disk
die() { echo "FAILED: $*"; tail -n 20 $dir/log/*.log /tmp/up.log; exit 1; }

# start ARGUMENT...: the cluster, until it is ready; stop: its end.
start() {
  : >/tmp/up # the last one is ready no more
  corefs up --dir $dir --replicas 1 --cores 1 --capacity 1GiB "$@" >/tmp/up 2>/tmp/up.log & up=$!
  n=0; until grep -q '^ready ' /tmp/up; do n=$((n + 1)); [ $n -lt 600 ] || die "not ready"; kill -0 $up || die "corefs up ended"; sleep 0.2; done
  COREFS_MANAGER=$(sed -n 's/^ready manager=\([^ ]*\).*/\1/p' /tmp/up); export COREFS_MANAGER COREFS_SECRET_FILE=$dir/secret
}
stop() { kill -TERM $up; wait $up || die "corefs up didn't stop cleanly"; }

# reads TRANSPORT FILE ARGUMENT...: one run, shown as the tool prints it; FILE gets its JSON.
reads() {
  transport=$1 file=$2; shift 2
  echo "--- corefs perf randread --transport $transport $*"
  corefs perf randread --transport "$transport" --size 16MiB --seconds 4 "$@" --json "$file" || die "reads by $transport"
}
# each FILE SIDE NAME: what an operation cost.
each() { tr -d '\n ' <"$1" | sed -n "s/.*\"$2_per_op\":{\([^}]*\)}.*/\1/p" | tr ',' '\n' | sed -n "s/^\"$3\":\([0-9.e-]*\)$/\1/p"; }

echo "EVERYTHING HERE IS EMULATED: COUNTS ARE WHAT THEY ARE, TIMES AND RATES MEAN NOTHING"
start
reads rdma /tmp/rdma-1.json --depth 1
reads tcp /tmp/tcp-1.json --depth 1
reads rdma /tmp/rdma-16.json --depth 16 --batch 8
reads tcp /tmp/tcp-16.json --depth 16 --batch 8
stop
# Polled: longer than a read takes here, so neither side sleeps between a request and its reply. Each has a core.
polled='--busy-poll 200000'
# shellcheck disable=SC2086
start $polled
# shellcheck disable=SC2086
reads rdma /tmp/rdma-polled-1.json --depth 1 $polled
# shellcheck disable=SC2086
reads rdma /tmp/rdma-polled-16.json --depth 16 --batch 8 $polled
stop

# beside TOOL ARGUMENT...: one of perftest's, both ends of it here.
beside() {
  echo "--- $*"
  "$@" -d rxe0 -x 1 -F >/tmp/served 2>&1 & served=$!
  sleep 1
  "$@" -d rxe0 -x 1 -F 10.66.0.1 || { cat /tmp/served; die "$1"; }
  wait $served
}
beside ib_read_lat -s 4096 -n 2000
beside ib_send_bw -s 4096 -n 5000

echo "--- in counts, for each read of 4 KiB (ib_read_lat counts nothing: by how it works, one of its reads is a request, a doorbell and a completion at its client)"
for run in rdma-1 rdma-polled-1 tcp-1 rdma-16 rdma-polled-16 tcp-16; do
  for side in server client; do
    echo "$run $side: $(for what in rdma_requests rdma_completions rdma_doorbells rdma_arms rdma_wakes copied_bytes system_calls; do
      found=$(each /tmp/$run.json $side $what); [ -z "$found" ] || printf '%s %.3f, ' "$what" "$found"; done)"
  done
done | sed 's/, $//; s/_/ /g'
for run in rdma-1 rdma-16 rdma-polled-1 rdma-polled-16; do
  for side in server client; do
    [ -n "$(each /tmp/$run.json $side rdma_requests)" ] || die "$run: the $side counted nothing of RDMA"
  done
  awk "BEGIN { exit !($(each /tmp/$run.json server copied_bytes) < 1) }" || die "$run: the server copied"
done
[ -z "$(each /tmp/tcp-1.json server rdma_requests)" ] || die "TCP went by RDMA"
# Who polls asks nobody to wake it, and the client, which has no disk, needs the kernel for nothing but what it tells the managers now and then.
for run in rdma-polled-1 rdma-polled-16; do
  for side in server client; do
    awk "BEGIN { exit !($(each /tmp/$run.json $side rdma_arms) < 0.05) }" || die "$run: the $side asked to be woken"
  done
  awk "BEGIN { exit !($(each /tmp/$run.json client system_calls) < 0.3) }" || die "$run: the client entered the kernel"
done
echo "EVERYTHING HERE IS EMULATED: COUNTS ARE WHAT THEY ARE, TIMES AND RATES MEAN NOTHING"
