#!/bin/sh
# RDMA and NVMe passthrough at once, inside a guest (ci/guest copies it there, beside the binary): two storage nodes and two copies, every target on a namespace that its
# node commands past the block layer, every connection to a shard by a queue pair. Shown by the counters of the tool itself, and by the kernel's of its block layer.
# Written for busybox. The last line says what was shown.
set -eu
export PATH=/payload:$PATH COREFS_LOG=info NO_COLOR=1
dir=/scratch/both
die() { echo "FAILED: $*"; tail -n 60 $dir/log/*.log /tmp/up.log; exit 1; }

# start: the cluster, until it is ready; stop: its end.
start() {
  : >/tmp/up # the last one is ready no more
  corefs up --dir $dir --nodes 2 --replicas 2 --cores 1 --targets 2 --capacity 1GiB --transport rdma >/tmp/up 2>/tmp/up.log & up=$!
  n=0; until grep -q '^ready ' /tmp/up; do n=$((n + 1)); [ $n -lt 600 ] || die "not ready"; kill -0 $up || die "corefs up ended"; sleep 0.2; done
  COREFS_MANAGER=$(sed -n 's/^ready manager=\([^ ]*\).*/\1/p' /tmp/up); export COREFS_MANAGER COREFS_SECRET_FILE=$dir/secret
}
stop() { kill -TERM $up; wait $up || die "corefs up didn't stop cleanly"; }
# of_shards COUNTER: its sum over all shards. Each count is told twice, of the shard and in the sum of its process.
of_shards() { corefs status --counters --json | tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p" | awk '{ n += $1 } END { print n / 2 }'; }
# each FILE SIDE NAME: what an operation cost.
each() { tr -d '\n ' <"$1" | sed -n "s/.*\"$2_per_op\":{\([^}]*\)}.*/\1/p" | tr ',' '\n' | sed -n "s/^\"$3\":\([0-9.e-]*\)$/\1/p"; }
# at_least FILE SIDE NAME COUNT: an operation cost so much of it, or more.
at_least() { found=$(each "$1" "$2" "$3"); awk "BEGIN { exit !(${found:-0} >= $4) }" || die "$1: ${found:-nothing} of $3 at the $2 for each operation, expected $4"; }
# targets_on NODE: how many there are on each of its disks.
targets_on() { corefs disk ls --dir $dir/node-"$1" --json | tr ',{}' '\n\n\n' | sed -n 's/^ *"targets": *\([0-9]*\).*/\1/p' | tr '\n' ' '; }
# operations FILE: how many there were; none may have failed.
operations() {
  tr ',{}' '\n\n\n' <"$1" >/tmp/figures
  ! grep -E '"(errors|verify_errors)": *[1-9]' /tmp/figures || die "errors in $1"
  sed -n 's/^ *"operations": *\([0-9]*\).*/\1/p' /tmp/figures | head -n 1
}
# by_block_layer: reads of both namespaces that the block layer has seen. What goes past it isn't among them.
by_block_layer() { cat /sys/block/nvme0n1/stat /sys/block/nvme0n2/stat | awk '{ n += $1 } END { print n + 0 }'; }

start
# Each node gets a namespace in the place of its file: what is there then is on the drive alone.
for node in 1 2; do
  corefs disk replace 0 --dir $dir/node-$node --disk /dev/nvme0n$node --wait || die "node $node can't have /dev/nvme0n$node"
  n=0; until targets_on $node | grep -q '^0 [1-9]'; do n=$((n + 1)); [ $n -lt 60 ] || { corefs disk ls --dir $dir/node-$node; die "targets of node $node aren't all on its drive"; }; sleep 0.5; done
  corefs disk ls --dir $dir/node-$node | tee /tmp/disks
  grep -q "/dev/nvme0n$node\$" /tmp/disks || die "node $node has no /dev/nvme0n$node"
done
corefs doctor --manager "$COREFS_MANAGER" | tee /tmp/reached
[ "$(grep -c '^node [0-9]* shard 0, [^ ]*: RDMA by rxe0 port 1, ' /tmp/reached)" = 2 ] || die "not both shards are reached by RDMA"
[ "$(of_shards disks_passthrough)" = 2 ] || die "$(of_shards disks_passthrough) disks are reached by passthrough"

head -c 6000000 /dev/urandom >/tmp/data
corefs fs put /tmp/data /data
corefs fs cat /data | cmp - /tmp/data || die "what was read isn't what was written"
before=$(of_shards drive_commands) corefs perf randread --transport rdma --size 16MiB --seconds 4 --depth 1 --verify --json /tmp/one.json || die "reads"
block=$(by_block_layer)
corefs perf randread --transport rdma --size 16MiB --seconds 4 --depth 16 --batch 8 --verify --json /tmp/many.json || die "reads"
[ "$(by_block_layer)" = "$block" ] || die "$(($(by_block_layer) - block)) reads went by the block layer"
corefs perf randwrite --transport rdma --size 8MiB --seconds 4 --depth 4 --verify --path /written --json /tmp/write.json || die "writes"
# A lone operation is a message and a receive at least on either side; of several at a time some share a message. Each is a command of its own;
# counters are read a moment before or after the last of them.
at_least /tmp/one.json client rdma_requests 1.98
at_least /tmp/one.json server rdma_requests 1.98
for run in one many write; do
  at_least /tmp/$run.json client rdma_requests 0.2
  at_least /tmp/$run.json server rdma_requests 0.2
  at_least /tmp/$run.json server drive_commands 0.98
done
awk "BEGIN { exit !($(each /tmp/one.json server copied_bytes) < 1 && $(each /tmp/many.json server copied_bytes) < 1) }" || die "the servers copied what was read"
one=$(operations /tmp/one.json) many=$(operations /tmp/many.json) write=$(operations /tmp/write.json)
commands=$(($(of_shards drive_commands) - before))
[ $commands -ge $((one + many + write)) ] || die "$commands commands to drives for $one + $many reads and $write writes"
[ "$(of_shards connections_by_rdma)" -ge 2 ] || die "storage nodes don't reach each other by RDMA"
# The controller is reset under load: what it had in flight is cancelled, and what comes meanwhile may be refused. Nobody hears of it.
loads=
for load in randread randwrite; do
  corefs perf $load --transport rdma --size 8MiB --seconds 8 --depth 4 --verify --path /reset-$load --json /tmp/$load.json >/dev/null 2>/tmp/$load.log & loads="$loads $!"
done
resets=0
until [ $resets = 5 ]; do
  sleep 1
  for load in $loads; do kill -0 "$load" || { cat /tmp/rand*.log; die "a load ended"; }; done
  echo 1 >/sys/class/nvme/nvme0/reset_controller || die "the drive can't be reset"
  resets=$((resets + 1))
done
for load in $loads; do wait "$load" || { cat /tmp/rand*.log; die "operations failed while the drive was reset"; }; done
for load in randread randwrite; do
  done=$(operations /tmp/$load.json)
  [ "$done" -gt 50 ] || die "only $done operations of $load while the drive was reset"
done
corefs status || die "not well after the resets"
again=$(of_shards drive_retries)
[ "$again" -gt 0 ] || die "no command was tried again: the resets met nothing"
# Another start finds it all again, on the drives.
stop
start
corefs fs cat /data | cmp - /tmp/data || die "what was read after another start isn't what was written"
[ "$(of_shards disks_passthrough)" = 2 ] || die "not by passthrough after another start"
stop
# And fsck reads everything by the block device.
corefs fsck --dir $dir >/dev/null || die "fsck"
complaints || die "$(complaints | tail -n 1)"
echo "--- in counts, for each operation (times mean nothing here, and system calls of who polls an emulated drive are as many as it is slow)"
for run in one many write; do
  for side in server client; do
    echo "$run $side: $(for what in rdma_requests rdma_completions rdma_doorbells copied_bytes drive_commands system_calls; do
      found=$(each /tmp/$run.json $side $what); [ -z "$found" ] || printf '%s %.3f, ' "$what" "$found"; done)"
  done
done | sed 's/, $//; s/_/ /g'
echo "RDMA to NVMe passthrough: $((one + many)) reads and $write writes of 4 KiB by queue pairs, $commands commands to two drives, verified; $again commands were tried again when the drive was reset $resets times under load"
