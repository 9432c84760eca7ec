#!/bin/bash
# Start a real Slurm cluster on this one machine: a controller "head" and N compute nodes n1..nN (default 4).
# Each is a network, host-name, mount and pid namespace of its own; no systemd, no cgroups, no outside network.
# Needs root; installs Debian's Slurm if it is missing. One cluster per machine.
#   eval "$(up.sh [N])"; sinfo; ...; down.sh
# A node crash, for tests: kill -9 "$(cat $SLURM_LAB/run/n2.pid)"
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
LAB=${SLURM_LAB:-/tmp/slurm-lab}        # all files lie here; down.sh removes it
NET=${SLURM_LAB_NET:-10.77.0}                   # .1 is this machine, .10 head, .11 n1, .12 n2, ...
N=${1:-4}
CPUS=${SLURM_LAB_CPUS:-8}                       # per node, need not exist
GPUS=${SLURM_LAB_GPUS:-0}                       # per node, pretended: Slurm counts them, sets CUDA_VISIBLE_DEVICES
ACCT=${SLURM_LAB_ACCT:-0}                       # 1: with MariaDB and slurmdbd, so that sacct works
want="$N $CPUS $GPUS $ACCT $NET"
export SLURM_CONF=$LAB/slurm.conf
die() { echo "lab: $*" >&2; exit 1; }
idle() { timeout 5 sinfo -h -N -p lab -t idle -o %N 2>/dev/null | wc -l; }
ready() { echo "lab: $1, $N idle nodes" >&2; echo "export SLURM_CONF=$SLURM_CONF"; exit 0; }
[ "$(id -u)" = 0 ] || die "must run as root"

"$(dirname "$0")/install.sh" "$ACCT" || exit 1
[ "$(cat "$LAB/ready" 2>/dev/null)" = "$want" ] && [ "$(idle)" = "$N" ] && ready "already running"
SLURM_LAB=$LAB "$(dirname "$0")/down.sh" || die "cannot stop the old cluster"
[ -e "$LAB" ] && die "$LAB exists and is not a slurm-lab"

mkdir -p "$LAB"/{log,run,state,spool,munge}
chmod 755 "$LAB" "$LAB/run"; chmod 700 "$LAB/munge"
(umask 077; head -c 128 /dev/urandom >"$LAB/munge/key")
{ echo 127.0.0.1 localhost; echo "$NET.1 $(hostname -s)"; echo "$NET.10 head"
  for i in $(seq "$N"); do echo "$NET.$((10 + i)) n$i"; done; } >"$LAB/hosts"
gres=
if [ "$GPUS" -gt 0 ]; then
  for i in $(seq 0 $((GPUS - 1))); do mknod "$LAB/gpu$i" c 1 3; done
  echo "Name=gpu File=$LAB/gpu[0-$((GPUS - 1))]" >"$LAB/gres.conf"; gres="Gres=gpu:$GPUS"
fi
gcc -Wall -Werror -shared -fPIC -o "$LAB/plugin.so" "$(dirname "$0")/plugin.c" || die "cannot compile plugin.c"
echo "required $LAB/plugin.so" >"$LAB/plugstack.conf"
acct=none head="slurmctld -D -i"
if [ "$ACCT" = 1 ]; then
  acct=slurmdbd
  (umask 077; cat >"$LAB/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$LAB/run/munge.socket
DbdHost=head
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
PidFile=$LAB/run/slurmdbd.own.pid
LogFile=$LAB/log/slurmdbd.log
CONF
  mariadb-install-db --no-defaults --user=root --datadir="$LAB/db" >"$LAB/log/db.out" 2>&1 ||
    die "cannot make a database: $(tail -n 3 "$LAB/log/db.out")"
  head="mariadbd --no-defaults --user=root --datadir=$LAB/db --socket=$LAB/run/db --bind-address=127.0.0.1 --skip-grant-tables &
    until (: </dev/tcp/127.0.0.1/3306) 2>/dev/null; do sleep 0.1; done
    slurmdbd -D & until sacctmgr -i add cluster lab; do sleep 0.2; done; slurmctld -D -i"
fi
cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=head($NET.10)
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again (default: 120 s)
AuthInfo=socket=$LAB/run/munge.socket,cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/run/slurmctld.own.pid
SlurmdPidFile=$LAB/run/slurmd.%n.own.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
PlugStackConfig=$LAB/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/$acct
AccountingStorageHost=$NET.10
AccountingStoragePass=$LAB/run/munge.socket
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
# only the backfill scheduler starts het jobs: at its default interval they wait up to 30 s
SchedulerParameters=bf_interval=1,bf_continue,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
KillWait=5
MinJobAge=3600
GresTypes=gpu
$(for i in $(seq "$N"); do echo "NodeName=n$i NodeAddr=$NET.$((10 + i)) CPUs=$CPUS RealMemory=64000 $gres"; done)
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=9
CONF

bg() { setsid "${@:2}" </dev/null >"$LAB/log/$1.out" 2>&1 & echo $! >"$LAB/run/$1.pid"; }   # bg NAME COMMAND...
# machine NAME COMMAND: run it in NAME's namespaces, below a bash that is pid 1 there: when that dies, all in it dies.
# (nsenter and not "ip netns exec", which hides /sys/fs/cgroup: slurmd does not start without it)
machine() {
  bg "$1" nsenter --net="/run/netns/slurmlab-$1" unshare --uts --mount --pid --fork --kill-child --mount-proc \
    bash -c "hostname $1; mount --bind '$LAB/hosts' /etc/hosts; $2 & wait -n"
}
bg munged munged --foreground --key-file="$LAB/munge/key" --socket="$LAB/run/munge.socket" \
  --pid-file="$LAB/run/munged.own.pid" --log-file="$LAB/log/munged.log" --seed-file="$LAB/munge/seed"
for i in $(seq 50); do [ -S "$LAB/run/munge.socket" ] && break; sleep 0.1; done

h=slurmlab-head   # the bridge lies in head, so that this machine's firewall does not see what nodes say to each other
ip netns add $h || die "cannot make network namespaces here"
ip link add slurmlab0 type veth peer name up0 netns $h
ip addr add "$NET.1/24" dev slurmlab0; ip link set slurmlab0 up
ip -n $h link set lo up; ip -n $h link add br0 type bridge; ip -n $h addr add "$NET.10/24" dev br0
ip -n $h link set up0 master br0 up; ip -n $h link set br0 up
machine head "$head"
for i in $(seq "$N"); do
  ip netns add "slurmlab-n$i"; ip -n "slurmlab-n$i" link set lo up
  ip -n $h link add "v$i" type veth peer name eth0 netns "slurmlab-n$i"; ip -n $h link set "v$i" master br0 up
  ip -n "slurmlab-n$i" addr add "$NET.$((10 + i))/24" dev eth0; ip -n "slurmlab-n$i" link set eth0 up
  machine "n$i" "slurmd -D"
done

SECONDS=0
while [ $SECONDS -lt 40 ]; do
  for p in munged head $(seq -f n%g "$N"); do
    kill -0 "$(cat "$LAB/run/$p.pid")" 2>/dev/null || die "$p has stopped: $(tail -n 3 "$LAB/log/$p.out")"
  done
  [ "$(idle)" = "$N" ] && { echo "$want" >"$LAB/ready"; ready started; }
  sleep 0.2
done
die "after 40 s only $(idle) of $N nodes are idle; logs: $LAB/log; head says: $(tail -n 3 "$LAB/log/head.out")"
