#!/bin/bash
# Stop what up.sh started, by process id, and remove its namespaces and files. Safe to run at any time.
set -u
PATH=$PATH:/usr/sbin:/sbin
LAB=${SLURM_LAB:-/tmp/slurm-lab}
# still ours, and not a later process with the same number? (a zombie's command line is empty)
ours() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$LAB/"; }
pids=$(cat "$LAB"/run/{n[0-9]*,head,munged}.pid 2>/dev/null)
for p in $pids; do   # of a machine, kill the child: its pid 1; what we started ends once all of the machine has ended
  # shellcheck disable=SC2046  # several children are several words
  ours "$p" && kill -9 $(grep . "/proc/$p/task/$p/children" 2>/dev/null || echo "$p")
done
for p in $pids; do
  for _ in $(seq 100); do ours "$p" || break; sleep 0.05; done
  ours "$p" && { echo "lab: process $p does not end" >&2; exit 1; }
done
for ns in $(ip netns list 2>/dev/null | awk '/^slurmlab-/ {print $1}'); do ip netns del "$ns"; done
ip link del slurmlab0 2>/dev/null
if [ -e "$LAB/munge/key" ]; then rm -rf "$LAB"; fi
