#!/usr/bin/env bash
# Start a Ray head on this machine that outlives single runs. Ray takes 127.0.0.1 for the outer address; .2 stays loopback.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
ray start --head --node-ip-address=127.0.0.2 --port="${RAY_PORT:-6379}" --include-dashboard=false --disable-usage-stats
echo "runs use it with: execution.ray_address=127.0.0.2:${RAY_PORT:-6379}"
