#!/usr/bin/env bash
# Start a Ray head on this machine that outlives single runs. Ray takes 127.0.0.1 for the outer address; .2 stays loopback.
set -euo pipefail
port="${RAY_PORT:-6379}" dashboard="${RAY_DASHBOARD_PORT:-8265}"
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_task_oom_retries=1
ray start --head --node-ip-address=127.0.0.2 --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --disable-usage-stats
echo "runs use it with: execution.ray_address=127.0.0.2:$port"
echo "jobs:             ray job submit --address http://127.0.0.1:$dashboard -- COMMAND"
