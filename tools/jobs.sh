#!/bin/sh
# Prints how many compilations may run at once: one per core that we may use, and no more than
# memory allows at about 1.5 GB each (half a gigabyte is left to everybody else).
set -eu
cores=$(nproc 2>/dev/null || echo 1)
available_kb=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo 2>/dev/null || true)
# A container's own limit counts, when there is one.
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
used=$(cat /sys/fs/cgroup/memory.current 2>/dev/null || echo 0)
awk -v cores="$cores" -v kb="${available_kb:-2000000}" -v limit="$limit" -v used="$used" 'BEGIN {
  if (limit != "max" && (limit - used) / 1024 < kb) kb = (limit - used) / 1024
  jobs = int((kb - 500000) / 1500000)
  if (jobs > cores) jobs = cores
  print jobs < 1 ? 1 : jobs
}'
