#!/bin/sh
# The conformance suite of transports between two soft-RoCE devices, inside a guest (ci/guest copies it there, beside the suite): what one sends leaves by its interface
# and comes in by the other's. And, of suites whose server is a process of its own, between two network namespaces: TCP with any kernel, RDMA where the kernel receives in both.
# Written for busybox, whose own `ip` knows too little. The last line says what was shown, or "skipped, because ...".
set -eu
ip=/usr/bin/ip
skip() { echo "skipped, because $*"; exit 0; }

$ip link add rdma1 mtu 9000 type veth peer name rdma2 || skip "the kernel makes no pair of interfaces (veth)"
$ip netns add far || skip "the kernel makes no network namespaces"
$ip link set rdma2 netns far
$ip addr add 10.67.0.1/24 dev rdma1; $ip link set rdma1 up
far="$ip netns exec far"
$far $ip link set rdma2 mtu 9000; $far $ip addr add 10.67.0.2/24 dev rdma2; $far $ip link set rdma2 up
# across TEST...: tests whose server is a process in the other namespace.
across() { COREFS_TEST_FAR="$far" COREFS_TEST_FAR_ADDRESS=10.67.0.2:0 transport "$@" --test-threads=1 2>&1; }
across on_tcp_in_two_processes
rdma link add rxe1 type rxe netdev rdma1 || skip "the kernel makes no second device"
# Soft-RoCE receives by a UDP socket of its port, 4791. One in the other namespace is what two namespaces take.
if $far rdma link add rxe2 type rxe netdev rdma2 && $far grep -q ':12B7 ' /proc/net/udp; then
  COREFS_TEST_RDMA=rxe1 COREFS_TEST_FAR_RDMA=rxe2 across on_rdma_in_two_processes
  where='in two network namespaces'
else
  echo "two network namespaces won't do for RDMA, because this kernel's soft-RoCE has no socket in the other one: $($far grep -c ':12B7 ' /proc/net/udp || true) there, $(grep -c ':12B7 ' /proc/net/udp) in the first"
  # Then in one namespace, where neither end may take the other's address for its own.
  $far $ip link set rdma2 netns 1
  $ip addr add 10.67.0.2/24 dev rdma2; $ip link set rdma2 up
  for which in all rdma1 rdma2; do
    echo 1 >/proc/sys/net/ipv4/conf/$which/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/$which/rp_filter
  done
  $ip neigh replace 10.67.0.2 lladdr "$(cat /sys/class/net/rdma2/address)" dev rdma1 nud permanent
  $ip neigh replace 10.67.0.1 lladdr "$(cat /sys/class/net/rdma1/address)" dev rdma2 nud permanent
  rdma link add rxe2 type rxe netdev rdma2 || skip "the kernel makes no third device"
  where='on the two ends of a veth pair'
fi
n=0
until [ "$(rdma link show rxe1/1 | grep -c 'state ACTIVE')$(rdma link show rxe2/1 | grep -c 'state ACTIVE')" = 11 ]; do
  n=$((n + 1)); [ $n -lt 100 ] || skip "a port doesn't come up: $(rdma link)"; sleep 0.1
done
sent() { cat /sys/class/net/rdma1/statistics/tx_packets; }
before=$(sent)
COREFS_TEST_RDMA='rxe1 rxe2' COREFS_TEST_RDMA_APART=1 transport "$@" --test-threads=1 2>&1
complaints
packets=$(($(sent) - before))
[ "$packets" -gt 1000 ] || { echo "FAILED: only $packets packets left by the first device"; exit 1; }
echo "the suite passed by TCP between two network namespaces, and by RDMA between two devices $where: $packets packets left by the first"
