#!/usr/bin/env bash
# Stop what start_services.sh started here, the server last. Flow runs that the worker has started go on without it:
# cancel those first that should not (prefect flow-run cancel ID).
set -euo pipefail
for name in worker tensorboard server; do
    file=".services/$name.pid"
    [[ -f $file ]] || continue
    pid="$(cat "$file")"
    kill -TERM "$pid" 2>/dev/null || true
    for ((tenth = 0; tenth < 300; tenth++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$file"
done
