#!/usr/bin/env bash
# Stop the Ray head of start_ray.sh. Careful: this ends every Ray process of yours on this machine.
set -euo pipefail
ray stop
