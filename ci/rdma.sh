#!/bin/sh
# A cluster over RDMA, inside a guest (ci/guest copies it there, beside the binary): three storage nodes, three copies, every connection to a shard by a queue pair.
# /dev/nvme0n1 is an ext4 with room for them. Written for busybox. The last line says what was shown.
set -eu
export PATH=/payload:$PATH COREFS_LOG=info NO_COLOR=1
dir=/scratch/disk/cluster
mkdir /scratch/disk
mount -t ext4 /dev/nvme0n1 /scratch/disk
die() { echo "FAILED: $*"; tail -n 20 $dir/log/*.log /tmp/up.log; exit 1; }

corefs doctor | tee /tmp/doctor
grep -q '^RDMA: rxe0 port 1, 10.66.0.1 (RoCE v2' /tmp/doctor || die "doctor doesn't take rxe0"
corefs up --dir $dir --replicas 3 --cores 1 --targets 4 --capacity 1GiB >/tmp/up 2>/tmp/up.log & up=$!
n=0; until grep -q '^ready ' /tmp/up; do n=$((n + 1)); [ $n -lt 600 ] || die "not ready"; kill -0 $up || die "corefs up ended"; sleep 0.2; done
COREFS_MANAGER=$(sed -n 's/^ready manager=\([^ ]*\).*/\1/p' /tmp/up); export COREFS_MANAGER COREFS_SECRET_FILE=$dir/secret

# of_shards COUNTER: its sum over all shards. Each count is told twice, of the shard and in the sum of its process.
of_shards() { corefs status --counters --json | tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p" | awk '{ n += $1 } END { print n / 2 }'; }

corefs doctor --manager "$COREFS_MANAGER" | tee /tmp/reached
[ "$(grep -c '^node [0-9]* shard 0, [^ ]*: RDMA by rxe0 port 1, ' /tmp/reached)" = 3 ] || die "doctor doesn't say that shards are reached by RDMA"
corefs doctor --manager "$COREFS_MANAGER" --json | grep -q '"transport": *"rdma"' || die "doctor doesn't say so in JSON"

head -c 6000000 /dev/urandom >/tmp/data
corefs fs put /tmp/data /data
for n in 1 2 3; do corefs fs cat /data | cmp - /tmp/data || die "what was read isn't what was written"; done
between=$(of_shards connections_by_rdma)
[ "$between" -ge 2 ] || die "storage nodes don't reach each other by RDMA: $between connections"
corefs perf randread --transport rdma --size 16MiB --seconds 4 --depth 16 --batch 8 --verify --json >/tmp/read.json || die "reads"
corefs perf randwrite --transport rdma --size 8MiB --seconds 4 --depth 4 --verify --path /written --json >/tmp/write.json || die "writes"
# figures FILE: what a run did; it must have no errors.
figures() {
  tr ',{}' '\n\n\n' <"$1" >/tmp/figures
  ! grep -E '"(errors|verify_errors)": *[1-9]' /tmp/figures || die "errors in $1"
  sed -n 's/^ *"operations": *\([0-9]*\).*/\1/p' /tmp/figures | head -n 1
}
echo "$(figures /tmp/read.json) reads and $(figures /tmp/write.json) writes, verified"

# A node dies in the middle of reads; others go on, and it comes back.
(corefs perf randread --size 16MiB --seconds 8 --depth 8 --verify --json >/tmp/killed.json) & reading=$!
sleep 3
victim=$(for process in /proc/[0-9]*; do tr '\0' ' ' <"$process/cmdline" | grep -q '^[^ ]*corefs storage .*node-2 ' && basename "$process"; done || true)
[ -n "$victim" ] || die "no storage node 2"
kill -9 "$victim"
wait $reading || die "reads while a node was killed"
echo "$(figures /tmp/killed.json) reads while a node was killed"
corefs fs put /tmp/data /again
corefs fs cat /again | cmp - /tmp/data || die "what was written while a node was away"
# The link goes down in the middle of reads, and up again: they go on by TCP.
before=$(of_shards connections_by_rdma)
(corefs perf randread --size 16MiB --seconds 20 --depth 8 --verify --json >/tmp/link.json 2>/tmp/link.log) & reading=$!
# Not before they go by it, which a guest with little of a processor takes its time for.
n=0; until [ "$(of_shards connections_by_rdma)" -gt "$before" ]; do n=$((n + 1)); [ $n -lt 30 ] && kill -0 $reading || die "reads don't go by RDMA"; sleep 0.5; done
sleep 1; ip link set rdma0 down
sleep 4; ip link set rdma0 up
wait $reading || die "reads while the link was down"
grep -q 'going on over TCP' /tmp/link.log || die "nobody noticed that the link was down"
echo "$(figures /tmp/link.json) reads while the link was down and up again"
corefs fs get /data /tmp/back && cmp /tmp/data /tmp/back || die "reads after that"
# The device is taken out in the middle of reads, which goes on until nobody has it open any more, and put in again.
(corefs perf randread --size 16MiB --seconds 20 --depth 8 --verify --json >/tmp/out.json 2>/tmp/out.log) & reading=$!
sleep 4; timeout 60 rdma link delete rxe0 || die "somebody keeps a device that is taken out"
grep -q 'an RDMA device is gone' /tmp/out.log || die "nobody noticed that the device was taken out"
corefs fs cat /data | cmp - /tmp/data || die "reads without the device"
[ "$(of_shards connections_by_rdma)" = 0 ] || die "connections go by a device that isn't there"
sleep 2; rdma link add rxe0 type rxe netdev rdma0
wait $reading || die "reads while the device was away"
echo "$(figures /tmp/out.json) reads while the device was away"
n=0; until corefs perf randread --transport rdma --size 16MiB --seconds 1 --depth 8 --verify --json >/tmp/back.json && grep -q '"rdma_requests"' /tmp/back.json; do
  n=$((n + 1)); [ $n -lt 20 ] || die "the device isn't used again"; sleep 1; done
echo "$(figures /tmp/back.json) reads by the device that is back"
# Who may pin less than a transport does goes by TCP, and is told why; who insists is told, too.
echo 'nobody:x:65534:65534::/:/bin/sh' >>/etc/passwd
cp $dir/secret /tmp/secret; chown 65534 /tmp/secret; chmod 666 /dev/infiniband/uverbs*
# as_nobody TRANSPORT LOG: reads of somebody who has no rights beside that of opening the device.
as_nobody() {
  (ulimit -l 1024; su nobody -c "COREFS_SECRET_FILE=/tmp/secret corefs perf randread --transport $1 --size 16MiB --seconds 1 --depth 8 --verify --json" >/tmp/nobody.json 2>"$2")
}
as_nobody auto /tmp/auto.log || { cat /tmp/auto.log; die "reads of who may pin little"; }
grep -q "this RDMA device can't be used.*pinning 64 MiB: raise the memlock limit" /tmp/auto.log || { cat /tmp/auto.log; die "it isn't said that little may be pinned"; }
echo "$(figures /tmp/nobody.json) reads by TCP of who may pin little"
! as_nobody rdma /tmp/firm.log || die "an RDMA that isn't there was no error"
grep -q 'RDMA was asked for: .*raise the memlock limit' /tmp/firm.log || { cat /tmp/firm.log; die "it isn't said why there is no RDMA"; }
kill -TERM $up; wait $up || die "corefs up didn't stop cleanly"
corefs fsck --dir $dir >/dev/null || die "fsck"
complaints || die "$(complaints | tail -n 1)"
echo "a cluster of 3 nodes with 3 copies over RDMA: $between connections between shards; read, written and verified, also while a node was killed, while the link was down and while the device was away"
