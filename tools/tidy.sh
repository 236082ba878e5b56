#!/bin/sh
# Runs clang-tidy over our own translation units: tools/tidy.sh [BUILD [FILES...]].
# BUILD holds compile_commands.json. Stops after TIDY_SECONDS (300) with what was checked by then,
# the files of the last commits first, so that a slow machine still checks what is new.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build}
[ $# -gt 0 ] && shift
limit=${TIDY_SECONDS:-300}
if [ $# -gt 0 ]; then
  files=$*
else
  recent=$(git log -20 --diff-filter=AM --name-only --format= -- 'lapidary/*.cpp')
  files=$(printf '%s\n' "$recent" $(git ls-files -- 'lapidary/*.cpp') | awk '!seen[$0]++')
fi
end=$(($(date +%s) + limit))
list=$(mktemp)
trap 'rm -f "$list"' EXIT
for file in $files; do
  if [ -f "$file" ]; then echo "$file"; fi
done > "$list"

# One process per core. A file that the clock cuts short is not checked, and no finding.
export build end
if xargs -r -P "$(tools/jobs.sh)" -n 1 sh -c '
    left=$((end - $(date +%s)))
    [ "$left" -gt 0 ] || exit 0
    code=0
    timeout "$left" clang-tidy --quiet --extra-arg=-Wno-unknown-warning-option -p "$build" "$1" 2>/dev/null || code=$?
    [ "$code" = 0 ] || [ "$code" = 124 ] || { echo "tidy: $1" >&2; exit 1; }
  ' tidy < "$list"; then
  if [ "$(date +%s)" -ge "$end" ]; then echo "tidy: stopped after $limit s; no finding so far"; fi
  echo "tidy: clean"
else
  echo "tidy: findings above" >&2
  exit 1
fi
