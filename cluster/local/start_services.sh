#!/usr/bin/env bash
# Start a Prefect server, a worker for its pool "process" and TensorBoard on this machine, all on loopback.
# Their process ids and logs lie in .services/, which stop_services.sh reads, and the server's NAME:PASSWORD, for you alone.
set -euo pipefail
prefect_port="${PREFECT_PORT:-4200}" tensorboard_port="${TENSORBOARD_PORT:-6006}"
export PREFECT_API_URL="http://127.0.0.1:$prefect_port/api" PREFECT_SERVER_UI_API_URL="http://127.0.0.1:$prefect_port/api"
export PREFECT_HOME="${PREFECT_HOME:-$PWD/.prefect}" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
mkdir -p .services
[[ -s .services/auth ]] || (umask 077 && python -c "import secrets; print('kexue:' + secrets.token_hex(16))" >.services/auth)
PREFECT_API_AUTH_STRING="$(cat .services/auth)"
export PREFECT_API_AUTH_STRING PREFECT_SERVER_API_AUTH_STRING="$PREFECT_API_AUTH_STRING"

launch() { # NAME COMMAND...
    local name="$1"
    shift
    if [[ -f .services/$name.pid ]] && kill -0 "$(cat ".services/$name.pid")" 2>/dev/null; then
        echo "$name runs already"
        return
    fi
    nohup "$@" >".services/$name.log" 2>&1 &
    echo "$!" >".services/$name.pid"
}

launch server prefect server start --host 127.0.0.1 --port "$prefect_port" --analytics-off
for ((second = 0; ; second++)); do
    python -c "import urllib.request as r; r.urlopen('$PREFECT_API_URL/health', timeout=2)" 2>/dev/null && break
    kill -0 "$(cat .services/server.pid)" 2>/dev/null || { tail -n 5 .services/server.log >&2; exit 1; }
    ((second < 180)) || { echo "the Prefect server does not answer; see .services/server.log" >&2; exit 1; }
    sleep 1
done
launch worker prefect worker start --pool process --type process --install-policy never
launch tensorboard tensorboard --logdir runs --host 127.0.0.1 --port "$tensorboard_port"
echo "export PREFECT_API_URL=$PREFECT_API_URL PREFECT_API_AUTH_STRING=\"\$(cat '$PWD/.services/auth')\""
echo "Prefect:     http://127.0.0.1:$prefect_port"
echo "TensorBoard: http://127.0.0.1:$tensorboard_port"
